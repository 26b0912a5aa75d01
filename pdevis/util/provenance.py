"""Provenance of results: checksums, versions, the git commit, the time."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pdevis

COMPARED = ("pdevis", "torch", "transformers")


def sha256(path: Path) -> str:
    """Return the checksum of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of packages that can change a result; None for one that is not installed."""
    result: dict[str, str | None] = {"python": platform.python_version()}
    for name in COMPARED:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = None
    return result


def hardware(pair: Any) -> dict[str, Any] | None:
    """Return the devices that a pair runs on, GPUs with their names; None without a pair."""
    if pair is None:
        return None
    import torch

    result: dict[str, Any] = {"threads": torch.get_num_threads(), "machine": platform.machine()}
    for name in ("target_device", "draft_device"):
        device = pair.describe().get(name)
        result[name] = device
        if str(device).startswith("cuda"):
            result[name] = f"{device} ({torch.cuda.get_device_name(device)})"
    return result


def now() -> str:
    """Return the time in UTC, for example 2030-01-31T12:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state() -> dict[str, Any] | None:
    """Return {"commit", "changed": True if files are uncommitted} of pdevis' repository; None outside of one."""
    root = Path(pdevis.__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # the installed package may lie inside another project's repository
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
