"""Journals, and how existing files are handled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pdevis.benchmarks.runs import journal as journals
from pdevis.benchmarks.runs.journal import (
    Journal,
    Output,
    check_same_pair,
    find_journals,
    journal_path,
    read_journals,
)
from pdevis.benchmarks.runs.result_files import meta_path

HEADER: dict[str, Any] = {"benchmark": "mmlu", "settings": {"gamma": 4, "k": None}, "versions": {"torch": "2"}}


def write(output: Path, entries: int, rank: int = 0, header: dict[str, Any] = HEADER) -> Path:
    with Journal(journal_path(output, rank), header) as journal:
        for index in range(entries):
            journal.add(2 * index + rank, {"question_id": index, "text": "zwölf\n"})
    return journal.path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


def test_a_journal_holds_what_was_added(output: Path) -> None:
    path = write(output, 2)
    assert path.name == "out.json.partial.jsonl"
    with Journal(path, {"other": 1}) as journal:
        journal.begin({"started": "now"})
        assert journal.units == 2
        journal.add(1, {"half": "\ud800"})
    (content,) = read_journals([path])
    assert content.header == HEADER
    assert content.runs == [{"started": "now"}]
    assert sorted(content.entries) == [0, 1, 2]
    assert content.entries[1] == {"half": "\ud800"}
    assert len(path.read_bytes().split(b"\n")) == 6


def test_each_line_is_on_the_disk_before_the_next(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(journals.os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    path = write(output, 2)
    assert len(synced) == 3
    assert synced[-1] == path.stat().st_size


@pytest.mark.parametrize("missing_bytes", [1, 5, 30])
def test_an_incomplete_last_line_is_dropped(output: Path, missing_bytes: int) -> None:
    path = write(output, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-missing_bytes])
    assert sorted(read_journals([path])[0].entries) == [0, 2]
    with Journal(path, HEADER) as journal:
        journal.add(4, {"question_id": 2, "text": "zwölf\n"})
    assert path.read_bytes() == whole


def test_a_file_without_a_complete_header_is_not_a_journal(output: Path) -> None:
    path = write(output, 0)
    for data in (path.read_bytes()[:-9], b""):
        path.write_bytes(data)
        assert read_journals([path]) == []
        with Journal(path, HEADER):
            pass
        assert read_journals([path])[0].header == HEADER


@pytest.mark.parametrize("line", [b"{broken\n", b'{"index": "x"}\n', b"[]\n", b'{"entry": {}}\n'])
def test_a_broken_line_in_the_middle_is_named(output: Path, line: bytes) -> None:
    path = write(output, 2)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, line, second, *rest]))
    with pytest.raises(ValueError, match=r"out.json.partial.jsonl: line 2 is broken"):
        read_journals([path])


def test_a_file_that_is_not_a_journal_is_not_changed(output: Path) -> None:
    path = journal_path(output)
    path.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="line 1 is broken"):
        Journal(path, HEADER)
    assert path.read_text() == '{"other": 1}\n'


def test_a_full_disk_loses_only_the_current_unit(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(number: int, data: bytes) -> int:
        if b'"index": 4' in data:
            real(number, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, data)

    monkeypatch.setattr(journals.os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device; its 2 finished items are kept: .*--resume"):
        write(output, 3)
    (content,) = read_journals(find_journals(output))
    assert sorted(content.entries) == [0, 2]
    assert journal_path(output).read_bytes().endswith(b"}}\n")


def test_journals_of_all_processes_are_found_and_no_others(output: Path) -> None:
    expected = [write(output, 1), write(output, 1, rank=1), write(output, 1, rank=12)]
    write(output.with_name("out.json.bak.json"), 1)
    output.with_name("out.json.x.partial.jsonl").touch()
    assert sorted(find_journals(output)) == sorted(expected)
    assert find_journals(output.parent / "nowhere" / "x.json") == []


def lines_of(header: dict[str, Any], *indices: int) -> list[bytes]:
    """Lines of a journal: its header, then items."""
    id = {"id": header["id"]} if "id" in header else {}
    values = [{"header": header}, *({**id, "index": index, "entry": {"question_id": index}} for index in indices)]
    return [json.dumps(value).encode() + b"\n" for value in values]


FIRST, SECOND = HEADER | {"id": "first"}, HEADER | {"id": "second", "settings": {"gamma": 8, "k": None}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (lines_of(FIRST, 0, 1) + lines_of(SECOND, 2)[1:], "line 4 is of another run than line 1"),
        (lines_of(FIRST, 0) + lines_of(HEADER, 1)[1:] + lines_of(FIRST, 2)[1:], "line 3 is of another run than line 1"),
        (lines_of(HEADER, 0) + lines_of(FIRST, 1)[1:], "line 3 is of another run than line 1"),
        (lines_of(FIRST, 0) + lines_of(SECOND, 1), "line 3 is broken"),
        ([*lines_of(FIRST, 0), b'{"id": "second", "run": {}}\n'], "line 3 is of another run than line 1"),
        (lines_of(FIRST, 0, 1, 0), "line 4 repeats item 0"),
        (lines_of(HEADER, 0, 1, 1), "line 4 repeats item 1"),
    ],
)
def test_items_of_two_runs_in_one_journal_are_refused(output: Path, lines: list[bytes], message: str) -> None:
    path = journal_path(output)
    path.write_bytes(b"".join(lines))
    for use in (lambda: read_journals([path]), lambda: earlier(output, resume=True), lambda: Journal(path, FIRST)):
        with pytest.raises(ValueError, match=rf"out.json.partial.jsonl: {message}"):
            use()
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("second", "message"),
    [(lines_of(SECOND, 1), "are of different runs"), (lines_of(FIRST, 0), "both have item 0")],
)
def test_journals_of_two_runs_are_refused(output: Path, second: list[bytes], message: str) -> None:
    journal_path(output).write_bytes(b"".join(lines_of(FIRST, 0)))
    journal_path(output, 1).write_bytes(b"".join(second))
    with pytest.raises(
        ValueError, match=rf"out.json.partial.jsonl and .*out.json.1.partial.jsonl {message}.*overwrite"
    ):
        earlier(output, resume=True)


def test_a_journal_that_another_run_has_begun_is_not_continued(output: Path) -> None:
    write(output, 2, header=FIRST)
    data = journal_path(output).read_bytes()
    with pytest.raises(ValueError, match="has been begun by another run in the meantime"):
        write(output, 2, header=SECOND)
    assert journal_path(output).read_bytes() == data
    assert all(b'{"id": "first", ' in line for line in data.splitlines()[1:])


def test_the_output_of_a_run_that_goes_on_is_locked(output: Path) -> None:
    with Output(output, "--out").lock(), pytest.raises(ValueError, match=r"--out .*out.json: process \d+ on "):
        Output(output, "--out").lock()
    refused = pytest.raises(ValueError, match=r"the journal .*out.json.3.partial.jsonl: process \d+ on .* is writing")
    with Journal(journal_path(output, 3), FIRST), refused:  # of a process that has survived the main one
        Output(output).lock()
    Output(output).lock().release()
    assert [path.name for path in output.parent.iterdir()] == ["out.json.3.partial.jsonl"]


def earlier(output: Path, header: dict[str, Any] = HEADER, **flags: bool) -> Any:
    return Output(output, **flags).read_earlier(header)


def test_without_files_a_run_starts_from_the_beginning(output: Path) -> None:
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        content = earlier(output, **flags)
        assert (content.header, content.entries, content.complete) == (None, {}, None)


def test_an_unfinished_run_is_continued_or_refused(output: Path) -> None:
    write(output, 2)
    write(output, 1, rank=1)
    with pytest.raises(ValueError, match=r"holds 3 finished items .*--resume continues it, --overwrite starts over"):
        earlier(output)
    assert sorted(earlier(output, resume=True).entries) == [0, 1, 2]
    assert earlier(output, overwrite=True).entries == {}
    assert len(find_journals(output)) == 2


def test_other_settings_are_named(output: Path) -> None:
    write(output, 1)
    changed = {**HEADER, "settings": {"gamma": 6, "k": 3}, "versions": {"torch": "3"}}
    with pytest.raises(ValueError, match=r"gamma is 6, was 4; k is 3, was None; torch is 3, was 2"):
        earlier(output, changed, resume=True)
    with pytest.raises(ValueError, match=r"settings: benchmark is wmt, was mmlu$"):
        earlier(output, {**changed, "benchmark": "wmt"}, resume=True)


def test_a_difference_of_the_pair_is_named(output: Path) -> None:
    recorded = {"target_device": "cuda:0", "mode": "exact"}
    check_same_pair({"target_device": "cuda:3", "mode": "exact"}, recorded, output)
    with pytest.raises(ValueError, match=r"mode is skip, was exact; target_device is cpu, was cuda"):
        check_same_pair({"target_device": "cpu", "mode": "skip"}, recorded, output)


def test_a_finished_run_is_never_replaced_by_accident(output: Path) -> None:
    output.write_text("[]")
    with pytest.raises(ValueError, match="already exists: --overwrite replaces it"):
        earlier(output)
    with pytest.raises(ValueError, match=r"without its out.json.meta.json: --overwrite"):
        earlier(output, resume=True)
    meta_path(output).write_text(json.dumps(HEADER | {"units": 3}))
    assert earlier(output, resume=True).complete["units"] == 3
    with pytest.raises(ValueError, match="gamma is 5, was 4"):
        earlier(output, {**HEADER, "settings": {"gamma": 5, "k": None}}, resume=True)
    assert output.read_text() == "[]"


def test_a_write_that_fails_leaves_the_old_file(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output.write_text("old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"out.json: cannot be written: No space left .* all 7 finished items are kept"):
        Output(output).write(b"new", {"units": 7})
    assert output.read_text() == "old"
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]
