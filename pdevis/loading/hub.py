"""The model hub: whether it answers, and what its errors mean in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from pdevis.loading.catalog import EMBEDDED, ModelLoadError

_NETWORK_PACKAGES = ("httpx", "httpcore", "urllib3", "requests")


def reach(repo: str) -> bool:
    """Whether the hub answers for a repository. False: it does not, but the cache has a copy.

    One request without retries: the library's own would keep a machine without network waiting for half a minute
    per file.

    Raises:
        ModelLoadError: for a repository that is gated, not there, or no transformers model; or where neither the hub
            nor a cached copy is at hand.
    """
    try:
        get_hf_file_metadata(hf_hub_url(repo, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if isinstance(try_to_load_from_cache(repo, "config.json"), str):
            return False
        raise ModelLoadError(explain(error, repo) or f"{repo}: {first_line(error)}") from error
    return True


def explain(error: BaseException, repo: str) -> str | None:
    """One line for an error of the hub or the network; None for any other error."""
    chain = list(causes(error))

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if any_of(GatedRepoError):
        return f"{repo} is gated: accept its licence at {constants.ENDPOINT}/{repo}, then run `hf auth login`"
    if any_of(RepositoryNotFoundError):
        return f"{repo} is not on the hub, or is private: check the spelling, or run `hf auth login`"
    if any_of(HFValidationError):
        return f"{repo} is not a hub id: must be owner/name"
    if any_of(EntryNotFoundError) and not any_of(LocalEntryNotFoundError):
        return f"{repo} has no config.json on the hub: not a transformers model (for GGUF give a local .gguf file)"
    reason = next((link for link in reversed(chain) if _is_network(link)), None)
    if reason is None:
        return None
    embedded = "" if repo.endswith("SmolLM2-135M-Instruct") else f", or take the embedded model {EMBEDDED}"
    return (
        f"{repo}: the hub cannot be reached ({first_line(reason)}) and no copy is cached; offline: give a local folder "
        f"with the model, or fill the cache where there is a network (`hf download {repo}`){embedded}"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _is_network(error: BaseException) -> bool:
    known = isinstance(error, (ConnectionError, TimeoutError, HfHubHTTPError, LocalEntryNotFoundError))
    return known or type(error).__module__.startswith(_NETWORK_PACKAGES)
