"""The model hub: whether it answers, its errors in one line that says what to do, and its progress bars.

`from_pretrained` makes every loading call of the libraries: nothing that comes with a model is run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from os import PathLike
from typing import Any, TextIO

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers.utils import logging

from pdevis.loading.catalog import EMBEDDED
from pdevis.util.validation import ModelLoadError, causes, first_line

_NETWORK_PACKAGES = ("httpx", "httpcore", "urllib3", "requests")


def from_pretrained(kind: Any, location: str | PathLike[str], **options: Any) -> Any:
    """Return `kind.from_pretrained(location)` for a class of transformers, without running code of the model.

    Without `trust_remote_code=False` transformers asks on stdin whether to run it.

    Raises:
        ValueError: the model needs code of its own.
    """
    return kind.from_pretrained(location, trust_remote_code=False, **options)


def is_reachable(repo: str) -> bool:
    """Return True if the hub answers for a repository, False if it does not but a copy is cached.

    One request without retries: the library's own retries would delay a machine without network by half a minute per
    file.

    Raises:
        ModelLoadError: if the repository is gated, does not exist or is not a transformers model, or if neither the
            hub nor a cached copy is available.
    """
    try:
        get_hf_file_metadata(hf_hub_url(repo, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if isinstance(try_to_load_from_cache(repo, "config.json"), str):
            return False
        raise ModelLoadError(explain_hub_error(error, repo) or f"{repo}: {first_line(error)}") from error
    return True


def explain_hub_error(error: BaseException, repo: str) -> str | None:
    """Return one line for an error of the hub or the network; None for any other error."""
    chain = list(causes(error))

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any_of(GatedRepoError):
        return f"{repo} is gated: accept its licence at {constants.ENDPOINT}/{repo}, then run `hf auth login`"
    if any_of(RepositoryNotFoundError):
        return f"{repo} is not on the hub, or is private: check the spelling, or run `hf auth login`"
    if any_of(HFValidationError):
        return f"{repo} is not a hub id: must be owner/name"
    if any_of(EntryNotFoundError) and not any_of(LocalEntryNotFoundError):
        return f"{repo} has no config.json on the hub: not a transformers model (for GGUF give a local .gguf file)"
    network_error = next((cause for cause in reversed(chain) if _is_network_error(cause)), None)
    if network_error is None:
        return None
    embedded = "" if repo.endswith("SmolLM2-135M-Instruct") else f", or use the embedded model {EMBEDDED}"
    return (
        f"{repo}: the hub cannot be reached ({first_line(network_error)}) and no copy is cached; offline: give a local "
        f"folder with the model, or fill the cache on a machine with network (`hf download {repo}`){embedded}"
    )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers and the hub, which would break a caller's own progress line."""
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(_WithoutBars(sys.stderr)):  # the bar of GGUF files cannot be disabled
            yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


class _WithoutBars:
    """A stream that leaves out what a progress bar writes: texts that begin with a carriage return."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._follows_bar = False

    def write(self, text: str) -> int:
        if text.startswith("\r") or (self._follows_bar and text == "\n"):  # a finished bar ends its line
            self._follows_bar = text != "\n"
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_network_error(error: BaseException) -> bool:
    known = isinstance(error, (ConnectionError, TimeoutError, HfHubHTTPError, LocalEntryNotFoundError))
    return known or type(error).__module__.startswith(_NETWORK_PACKAGES)
