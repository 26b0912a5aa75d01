"""Where pdevis keeps what it makes outside the project: converted models, the chat's history."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """PDEVIS_CACHE, else XDG_CACHE_HOME/pdevis, else ~/.cache/pdevis; it need not exist yet."""
    if chosen := os.environ.get("PDEVIS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdevis"
