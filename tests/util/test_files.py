"""Output files: checked, and their folder created, before any work is done."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pdevis.util.files import make_parent_folder, prepare_output_file


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
