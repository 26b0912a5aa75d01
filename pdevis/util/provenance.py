"""Origin of results: checksums, versions, the git commit, devices, the time."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pdevis

COMPARED = ("pdevis", "torch", "transformers")  # packages whose versions must be the same when a run is resumed


def sha256(path: Path) -> str:
    """SHA-256 checksum of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware(pair: Any) -> dict[str, Any] | None:
    """Devices of a pair, with the names of its GPUs; None if there is no pair."""
    if pair is None:
        return None
    import torch

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "machine": platform.machine()}
    labels = pair.describe()
    for name in ("target_device", "draft_device"):
        device = labels.get(name)
        is_gpu = str(device).startswith("cuda")
        found[name] = f"{device} ({torch.cuda.get_device_name(device)})" if is_gpu else device
    return found


def now() -> str:
    """The time in UTC, as in 2030-01-31T12:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Commit of pdevis' own repository, and True under "changed" if there are uncommitted changes; None outside one."""
    root = Path(pdevis.__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # the folder of an environment may lie inside another project's repository
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
