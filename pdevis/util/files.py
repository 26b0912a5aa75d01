"""The cache folder, and writing files and folders atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def cache_root() -> Path:
    """PDEVIS_CACHE, else XDG_CACHE_HOME/pdevis, else ~/.cache/pdevis; it need not exist yet."""
    if chosen := os.environ.get("PDEVIS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdevis"


def publish(made: Path, folder: Path, is_complete: Callable[[Path], bool]) -> None:
    """Put a finished folder in its place in one step, unless another process was faster; a broken one gives way.

    Args:
        made: in a work folder on the same disk, which the caller removes.
    """
    try:
        made.rename(folder)
    except OSError:
        if is_complete(folder):
            return
        if folder.exists():
            folder.rename(made.with_name("broken"))
        made.rename(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, which then takes the file's place."""
    path = path.resolve()  # a link stays a link
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with neighbour.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)
