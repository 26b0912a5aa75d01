"""Models of the hub that are not available: gated, missing, or no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from helpers import HANG_SECONDS
from pdevis.loading import checkpoint, hub
from pdevis.loading.catalog import Source
from pdevis.util.validation import ModelLoadError


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("said\nso", response=response)


class ConnectTimeout(Exception):
    """The error of the hub's HTTP library, which depends on the release."""

    __module__ = "httpx"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(GatedRepoError, 403), "gated: accept its licence at .*/owner/name, then run `hf auth login`"),
        (http_error(RepositoryNotFoundError, 401), "not on the hub, or is private"),
        (http_error(HfHubHTTPError, 503), "cannot be reached .* local folder .* smollm2-135m"),
        (ConnectTimeout("timed out"), "cannot be reached .timed out."),
        (ConnectionError("offline mode"), "cannot be reached .offline mode."),
    ],
)
def test_hub_errors(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(ModelLoadError, match=expected):
        checkpoint.find_source("owner/name")
    # a copy in the cache is enough
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: "/cache/config.json")
    assert checkpoint.find_source("owner/name").local_only


def test_hub_error_after_the_first_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("long text") from http_error(GatedRepoError, 403)

    monkeypatch.setattr(checkpoint, "cached_file", fail)
    with pytest.raises(ModelLoadError, match="is gated"):
        checkpoint.read_config(Source("qwen-8b", "hub", "Qwen/Qwen3-8B"))


@pytest.mark.parametrize("offline", [True, False])
def test_no_network(tmp_path: Path, offline: bool) -> None:
    """The library's offline mode, and a hub that refuses connections; in a new interpreter with an empty cache."""
    settings = {"HF_HUB_OFFLINE": "1"} if offline else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code = "import sys; from pdevis.loading.checkpoint import find_source; find_source('qwen-0.6b')"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_HOME": str(tmp_path)} | settings,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("pdevis.util.validation.ModelLoadError: Qwen/Qwen3-0.6B: the hub cannot be reached")
    assert "hf download Qwen/Qwen3-0.6B" in last
    assert "Retry" not in run.stderr
