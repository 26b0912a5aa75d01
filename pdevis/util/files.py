"""The cache folder, text that comes in and goes out, locks, and writing files and folders atomically.

Text that comes in, from a file or standard input, is UTF-8 with or without a byte-order mark, and its lines may end in
CRLF, CR or LF; the program sees LF only. Files that are written are UTF-8. What a terminal or pipe cannot show is
written as an escape.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import platform
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

OTHER_ENCODINGS = {  # by byte-order mark; that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class NotTextError(ValueError):
    """Bytes that are not UTF-8 text; the message names the file and the first wrong byte."""


def decode_text(data: bytes, name: object, start: int = 0) -> str:
    """Return the text of bytes from a file or pipe, without a byte-order mark, with LF as the end of each line.

    Args:
        name: of the file, flag or stream, for messages.
        start: position of the bytes in it.

    Raises:
        NotTextError: it is not UTF-8, or has a NUL byte, as binary files and UTF-16 without a mark have.
    """
    for mark, encoding in OTHER_ENCODINGS.items():
        if data.startswith(mark) and start == 0:
            convert = f"iconv -f {encoding} -t UTF-8 converts it"
            raise NotTextError(f"{name}: must be UTF-8 text, but is {encoding}: {convert}")
    if b"\0" in data:
        position = start + data.index(b"\0")
        raise NotTextError(f"{name}: must be UTF-8 text: NUL at byte {position}, as in UTF-16 or a binary file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError(f"{name}: must be UTF-8 text: {error.reason} at byte {start + error.start}") from None
    return text.removeprefix("\N{BYTE ORDER MARK}").replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path | str) -> str:
    """Return the text of a file. Raises NotTextError as `decode_text`, and OSError if it cannot be read."""
    return decode_text(Path(path).read_bytes(), path)


def read_stdin() -> str:
    """Return all text of standard input. Raises NotTextError as `decode_text`."""
    if not hasattr(sys.stdin, "buffer"):  # replaced by a program that calls this one
        return sys.stdin.read()
    return decode_text(sys.stdin.buffer.read(), "standard input")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for lists inside lists without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None


def encode_json(value: Any, **options: Any) -> bytes:
    """Encode as JSON in UTF-8, on one line without `indent`. Half surrogate pairs, which UTF-8 lacks, stay escapes."""
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "backslashreplace")


def print_json(value: Any, **options: Any) -> None:
    """Print a value as one line of JSON on stdout; with escapes if stdout cannot show all of its letters."""
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, **options)
    print(text)


def prepare_streams() -> None:
    """Let stdout and stderr write what they cannot show as escapes, and replace standard streams that are closed.

    Every script calls this when it starts.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def cache_root() -> Path:
    """Return PDEVIS_CACHE, else XDG_CACHE_HOME/pdevis, else ~/.cache/pdevis. The folder may not exist yet.

    Raises:
        OSError: none of the variables is set and the user has no home folder, as in some containers.
    """
    if chosen := os.environ.get("PDEVIS_CACHE"):
        return expand_user(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "pdevis"
    home = expand_user("~")
    if not home.is_absolute():
        raise OSError("this user has no home folder; set PDEVIS_CACHE to a folder for the cache")
    return home / ".cache" / "pdevis"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Replace a leading ~ or ~name by the home folder; unchanged if there is none, as in a shell."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises RuntimeError if there is no home folder


@contextlib.contextmanager
def home_for_libraries() -> Iterator[None]:
    """Give a user without a home folder the folder for temporary files, while a library needs one, as nltk's import."""
    if expand_user("~").is_absolute():
        yield
        return
    before = os.environ.get("HOME")
    os.environ["HOME"] = tempfile.gettempdir()
    try:
        yield
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before


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


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which is renamed to `path` at the end of the block, or removed if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file, through to the disk, or nothing.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    path = path.resolve()  # writes to the target of a symbolic link, which stays a link
    try:
        with open_atomic(path) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, or nothing. Raises FileExistsError, and OSError if the disk refuses."""
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            with contextlib.suppress(OSError):
                file.close()  # tries to write once more
            raise


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
    ancestor = next(parent for parent in path.parents if parent.exists())
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


def _remove_lock(path: Path, file: TextIO, process: int) -> None:
    if os.getpid() != process:  # a fork of the process that holds the lock
        return
    with contextlib.suppress(OSError):  # Windows does not remove an open file; an unlocked one does no harm
        path.unlink()
    with contextlib.suppress(OSError):
        file.close()


class FileLock:
    """Lock of a file that this process is going to write, held until `release` or the end of the process.

    The system releases it if the process is killed. The lock is on a hidden file of its own (.NAME.lock), which is
    removed with it, so that the file itself can be read and replaced. On a disk without locks, as some network disks
    are, a note is printed, and nothing is locked.

    Args:
        path: the file; it need not exist. Its folder must.
        flag: how the user names it, for messages.

    Raises:
        ValueError: another process holds the lock; names the process. OSError: the folder cannot be written to.
    """

    def __init__(self, path: Path, *, flag: str = "--output") -> None:
        path_on_disk = path.resolve()  # the same for all names of one file
        self.path = path_on_disk.with_name(f".{path_on_disk.name}.lock")
        self._release: Callable[[], object] = lambda: None
        while not self._acquire(path, flag):
            pass

    def _acquire(self, path: Path, flag: str) -> bool:
        """Open the lock file and lock it. Returns False if the process that held the lock has just removed the file."""
        import portalocker

        try:
            self._file: TextIO = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OSError(f"{flag} {path}: the lock {self.path} cannot be opened: {error.strerror or error}") from None
        try:
            portalocker.lock(self._file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            raise ValueError(
                f"{flag} {path}: {self._read_holder()} is writing it: wait until it has ended, or name another file"
            ) from None
        except portalocker.LockException as error:
            note = f"note: {flag} {path}: this disk has no locks ({error}): no other run may write it now"
            print(note, file=sys.stderr, flush=True)
            self._release = weakref.finalize(self, _remove_lock, self.path, self._file, os.getpid())
            return True
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                with contextlib.suppress(OSError):  # a full disk: the lock holds, but does not name the process
                    self._file.truncate(0)
                    self._file.write(f"process {os.getpid()} on {platform.node()}")
                    self._file.flush()
                self._release = weakref.finalize(self, _remove_lock, self.path, self._file, os.getpid())
                return True
        except FileNotFoundError:
            pass
        self._file.close()
        return False

    def _read_holder(self) -> str:
        """Name the process that holds the lock, as far as that is known; close the file."""
        holder = ""
        with contextlib.suppress(OSError), self._file:  # Windows does not let others read a locked file
            self._file.seek(0)
            holder = self._file.read(200)
        return holder if holder.startswith("process ") else "another process"

    def release(self) -> None:
        """Remove the lock. A second call does nothing."""
        self._release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


@contextlib.contextmanager
def locked_new_file(path: Path, overwrite: bool) -> Iterator[None]:
    """Prepare and lock a command's --output file for the block that will write it.

    Raises:
        ValueError: it exists and may not be replaced, and as `prepare_output_file` and `FileLock`. OSError: as these.
    """
    prepare_output_file(path)
    with FileLock(path):
        if path.exists() and not overwrite:
            raise ValueError(f"--output {path}: already exists: --overwrite replaces it")
        yield
