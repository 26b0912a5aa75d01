"""The cache folder, and writing files and folders atomically."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
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


def make_parent_folder(path: Path) -> bool:
    """Create the folder of a file that is about to be written; False if it already exists.

    Of several processes that call this at the same time, one gets True.

    Raises:
        OSError: the folder cannot be created; names it.
    """
    folder = path.parent
    if folder.is_dir():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return False
        raise OSError(f"the folder {folder} cannot be created: {error.strerror or error}; name another file") from None
    return True


def prepare_output_file(path: Path, *, flag: str = "--output", inputs: Iterable[Path] = ()) -> None:
    """Check before any work is done that a file can be written; create its folder, and report that on stderr.

    Args:
        path: the file that is to be written.
        flag: how the user names it, for messages.
        inputs: files that it must not replace.

    Raises:
        ValueError: for a folder, a device, one of the `inputs`, or a path below a file. OSError: the folder cannot be
            created or written to.
    """
    folder = path.parent
    if path.is_dir():
        raise ValueError(f"{flag} {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{flag} {path}: is not a regular file")
    ancestor = next(each for each in path.parents if each.exists())
    if not ancestor.is_dir():
        raise ValueError(f"{flag} {path}: {ancestor} is a file, not a folder")
    for other in inputs:
        if path.exists() and other.exists() and path.samefile(other):
            raise ValueError(f"{flag} {path}: is the input {other}, which would be overwritten")
    try:
        if make_parent_folder(path):
            print(f"created the folder {folder}", file=sys.stderr, flush=True)
    except OSError as error:
        raise OSError(f"{flag} {path}: {error}") from None
    probe = folder / f".{path.name}.{os.getpid()}.probe"
    try:
        probe.write_bytes(b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{flag} {path}: the folder {folder} cannot be written to: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
