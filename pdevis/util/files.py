"""The cache folder, and writing files and folders atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def cache_root() -> Path:
    """Return PDEVIS_CACHE, else XDG_CACHE_HOME/pdevis, else ~/.cache/pdevis. The folder may not exist yet."""
    if chosen := os.environ.get("PDEVIS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdevis"


def publish(finished: Path, folder: Path, is_complete: Callable[[Path], bool]) -> None:
    """Rename a finished folder to `folder`, unless another process has published it already.

    An incomplete `folder` is moved aside, into the work folder of `finished`.

    Args:
        finished: inside a work folder on the same disk, which the caller removes.
        is_complete: True if a folder that already exists can be used.
    """
    try:
        finished.rename(folder)
    except OSError:
        if is_complete(folder):
            return
        if folder.exists():
            folder.rename(finished.with_name("broken"))
        finished.rename(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: write to a temporary file, then rename it to `path`."""
    path = path.resolve()  # writes to the target of a symbolic link, which stays a link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
