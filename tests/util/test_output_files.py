"""Output files: folders that are created, locks, new files that are complete or absent, paths without a home."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import portalocker
import pytest

from helpers import ROOT
from pdevis.util.files import (
    FileLock,
    cache_root,
    expand_user,
    make_parent_folder,
    prepare_output_file,
    write_new,
)

HOLDER = """
import sys
from pathlib import Path
from pdevis.util.files import FileLock
lock = FileLock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.json"
    file.write_text("[]")

    def refuse(path: Path, inputs: tuple[Path, ...] = ()) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            prepare_output_file(path, inputs=inputs)
        return str(caught.value)

    assert refuse(tmp_path).endswith("is a folder; name a file in it")
    for below in (file / "x.json", file / "no" / "x.json"):
        assert f"{file} is a file, not a folder" in refuse(below)
    assert "which would be overwritten" in refuse(file, (file,))
    assert "is not a regular file" in refuse(Path("/dev/null"))
    prepare_output_file(tmp_path / "x.json", inputs=(file, tmp_path / "missing"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json"]

    def deny(self: Path, data: bytes) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", deny)
    assert f"the folder {tmp_path} cannot be written to: Permission denied" in refuse(tmp_path / "x.json")


def test_a_missing_folder_is_created_and_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "folder" / "x.json"
    prepare_output_file(path)
    assert capsys.readouterr().err == f"created the folder {path.parent}\n"
    assert path.parent.is_dir()
    assert not make_parent_folder(path)
    assert capsys.readouterr().err == ""


def start_holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("end", ["released", "killed"])
def test_a_locked_file_is_refused_until_its_process_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "out.json"
    process = start_holder(path)
    holder = rf"--out .*out.json: process {process.pid} on .* is writing it: wait until it has ended"
    for _ in range(2):  # the first refusal leaves the name of the process in the file
        with pytest.raises(ValueError, match=holder):
            FileLock(path, flag="--out")
    if end == "killed":
        process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [file.name for file in tmp_path.iterdir()] == ([".out.json.lock"] if end == "killed" else [])
    with FileLock(path):
        assert [file.name for file in tmp_path.iterdir()] == [".out.json.lock"]
    assert list(tmp_path.iterdir()) == []


def test_all_names_of_a_file_share_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder", target_is_directory=True)
    (tmp_path / "link.json").symlink_to(tmp_path / "folder" / "out.json")
    monkeypatch.chdir(tmp_path / "folder")
    with FileLock(Path("out.json")):
        for path in (tmp_path / "folder" / "out.json", tmp_path / "link" / "out.json", tmp_path / "link.json"):
            with pytest.raises(ValueError, match="is writing it"):
                FileLock(path)
        FileLock(Path("other.json")).release()


def test_a_lock_file_that_is_removed_in_the_meantime_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock_file, real = tmp_path / "out.json", tmp_path / ".out.json.lock", portalocker.lock
    removed: list[bool] = []

    def lock(file: object, flags: object) -> None:
        real(file, flags)
        if not removed:  # as another process does that ends between this one's opening and locking
            lock_file.unlink()
            removed.append(True)

    monkeypatch.setattr(portalocker, "lock", lock)
    with FileLock(path):
        monkeypatch.undo()
        with pytest.raises(ValueError, match="is writing it"):
            FileLock(path)


def test_a_disk_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: object, flags: object) -> None:
        raise portalocker.LockException("No locks available")

    monkeypatch.setattr(portalocker, "lock", refuse)
    with FileLock(tmp_path / "out.json"):
        note = capsys.readouterr().err
    assert note.startswith(f"note: --output {tmp_path / 'out.json'}: this disk has no locks (No locks available)")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.txt"
    write_new(path, b"text")
    with pytest.raises(FileExistsError):
        write_new(path, b"other")
    assert path.read_bytes() == b"text"

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_new(tmp_path / "cut.txt", b"text")
    assert [file.name for file in tmp_path.iterdir()] == ["new.txt"]


def test_a_user_without_a_home_folder(no_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="this user has no home folder; set PDEVIS_CACHE to a folder for the cache"):
        cache_root()
    assert expand_user("~/model") == Path("~/model")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_root() == Path("/b/pdevis")
