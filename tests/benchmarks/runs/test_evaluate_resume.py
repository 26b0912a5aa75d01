"""A run that is stopped, killed or out of disk loses one item at most; --resume gives the same results."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.evaluation import SLOW_PAIR, Scripts, load, timeless
from helpers.processes import eventually
from pdevis.benchmarks.runs import journal as journals
from pdevis.benchmarks.runs.journal import journal_path, read_journals
from pdevis.benchmarks.runs.result_files import read_meta

FLAGS = ("--k", 6, "--gen_len", 6, "--gamma", 2, "--code_path", SLOW_PAIR, "--no-progress")
OUTPUT = Path("o.json")


@pytest.fixture
def scripts(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scripts:
    monkeypatch.chdir(tmp_path)
    return Scripts(tiny_folder("llama", 0, 3), tiny_folder("llama", 1, 3), capsys)


def uninterrupted(scripts: Scripts) -> object:
    assert scripts("mmlu", *FLAGS, "--output", "whole.json")[0] == 0
    return timeless(load(Path("whole.json")))


def test_kill_9_and_resume(scripts: Scripts) -> None:
    process = scripts.start("mmlu", *FLAGS, "--output", OUTPUT, HANG_AT=str(3 + 3 * 2 + 1))
    path = journal_path(OUTPUT)
    assert eventually(
        lambda: process.poll() is not None or (path.exists() and path.read_bytes().count(b'"index"') == 2)
    )
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not OUTPUT.exists()
    assert len(read_journals([path])[0].entries) == 2
    with path.open("ab") as file:
        file.write(b'{"index": 5, "entry": {"question_id"')  # as a kill in mid-write leaves it
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")
    assert code == 0
    assert "2 of 6 items are done already" in err
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)
    assert not path.exists()
    meta = read_meta(OUTPUT)
    assert [bool(run["ended"]) for run in meta["runs"]] == [False, True]
    assert meta["started"] == meta["runs"][0]["started"]


def stop(scripts: Scripts, monkeypatch: pytest.MonkeyPatch, at: int, *flags: object) -> tuple[int, str]:
    monkeypatch.setenv("STOP_AT", str(at))
    result = scripts("mmlu", *FLAGS, "--output", OUTPUT, *flags)
    monkeypatch.delenv("STOP_AT")
    return result


def test_ctrl_c_keeps_finished_items_and_says_how_to_resume(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    code, err = stop(scripts, monkeypatch, 3 + 3 + 2)
    assert code == 130
    kept = "stopped: 1 of 6 items are kept in o.json.partial.jsonl"
    assert err == f"{kept}; run the same command with --resume to continue\n"
    code, err = stop(scripts, monkeypatch, 3 + 3 + 1, "--resume")
    assert code == 130
    assert "stopped: 2 of 6" in err
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT)
    assert code == 2
    assert err.startswith("error: o.json.partial.jsonl holds 2 finished items of an earlier run: --resume continues it")
    assert err.count("\n") == 1
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")[0] == 0
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)
    assert len(read_meta(OUTPUT)["runs"]) == 3


def test_resume_needs_the_same_settings_and_dataset(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"question_id": i, "subject": "s", "prompt": f"Which, {i}?", "label": "A"} for i in range(6)]
    data = Path("data.json")
    data.write_text(json.dumps(items))
    stop(scripts, monkeypatch, 3 + 3 + 1, "--dataset", data)
    kept = journal_path(OUTPUT).read_bytes()
    argv = ("--output", OUTPUT, "--resume", "--dataset", data)
    code, err = scripts("mmlu", *FLAGS, *argv, "--gamma", 3, "--draft_mode", "skip")
    assert code == 2
    assert "draft_mode is skip, was auto; gamma is 3, was 2" in err
    code, err = scripts("mmlu", *FLAGS, *argv, "--methods", "target")
    assert "methods is ['target'], was" in err
    code, err = scripts("mmlu", *FLAGS, *argv, "--draft_precision", "float32")
    assert (code, err.count("\n")) == (2, 1)
    data.write_text(json.dumps(items[::-1]))
    code, err = scripts("mmlu", *FLAGS, *argv)
    assert code == 2
    assert "dataset_sha256" in err
    assert journal_path(OUTPUT).read_bytes() == kept
    data.write_text(json.dumps(items))
    assert scripts("mmlu", *FLAGS, *argv)[0] == 0


def test_a_sampled_run_is_resumed_with_its_drawn_seed(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(scripts, monkeypatch, 3 + 3 + 1, "--temperature", 0.8)
    assert scripts("mmlu", *FLAGS, "--temperature", 0.8, "--output", OUTPUT, "--resume")[0] == 0
    seed = read_meta(OUTPUT)["settings"]["seed"]
    assert scripts("mmlu", *FLAGS, "--temperature", 0.8, "--output", "whole.json", "--seed", seed)[0] == 0
    assert timeless(load(OUTPUT)) == timeless(load(Path("whole.json")))


def test_finished_results_are_replaced_only_with_overwrite(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT)[0] == 0
    first = OUTPUT.read_bytes()
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT)
    assert (code, err) == (2, "error: --output o.json: already exists: --overwrite replaces it\n")
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")
    assert (code, err) == (0, "o.json is complete: 6 items, 0 failed\n")
    assert stop(scripts, monkeypatch, 8, "--overwrite")[0] == 130
    assert OUTPUT.read_bytes() == first  # until the new run has finished
    assert stop(scripts, monkeypatch, 8, "--overwrite")[0] == 130
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT, "--overwrite")[0] == 0
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)
    assert not journal_path(OUTPUT).exists()


def test_resume_without_an_earlier_run_starts(scripts: Scripts) -> None:
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")
    assert code == 0
    assert err.splitlines()[0] == "nothing to resume: starting"


def test_a_full_disk_is_one_line_and_nothing_is_lost(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(number: int, data: bytes) -> int:
        if b'"index": 3' in data:
            real(number, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, data)

    monkeypatch.setattr(journals.os, "write", full)
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT)
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "error: o.json.partial.jsonl: cannot be written: No space left on device; its 3"
    )
    monkeypatch.setattr(journals.os, "write", real)

    def full_at_the_end(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pdevis.benchmarks.runs.journal.write_atomic", full_at_the_end)
        code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")
    assert code == 1
    assert "all 6 finished items are kept: free disk space, then run the same command with --resume" in err
    monkeypatch.setenv("FAIL_AT", "1")  # no model is asked again
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")[0] == 0
    monkeypatch.delenv("FAIL_AT")
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)


def test_a_second_run_is_refused_and_costs_the_first_nothing(scripts: Scripts) -> None:
    first = scripts.start("mmlu", *FLAGS, "--output", OUTPUT, HANG_AT=str(3 + 3 * 2 + 1))
    path = journal_path(OUTPUT)
    assert eventually(lambda: first.poll() is not None or (path.exists() and path.read_bytes().count(b'"index"') == 2))
    data = path.read_bytes()
    for flags in ([], ["--resume"], ["--overwrite"], ["--gen_len", 3, "--resume"]):
        code, err = scripts("mmlu", *FLAGS, *flags, "--output", OUTPUT)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: --output {OUTPUT}: process {first.pid} on ")
        assert path.read_bytes() == data
    first.kill()
    first.communicate()
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")[0] == 0
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)


def test_a_partial_file_of_other_questions_is_refused(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(scripts, monkeypatch, 3 + 3 * 2 + 1)
    path = journal_path(OUTPUT)
    whole = path.read_text()
    for old, new, message in (
        ('"index": 1', '"index": 6', "has an item 6, and this run the items 0 to 5"),
        ('"index": 1', '"index": 3', "as item 3, which is "),
        ('"index": 1', '"index": 0', "line 4 repeats item 0"),
        ('"index": 1', '"index": "1"', "line 4 is broken"),
    ):
        changed = whole.replace(old, new)
        assert changed != whole
        path.write_text(changed)
        code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
        assert path.read_text() == changed


def test_a_disk_that_is_full_for_another_file_ends_the_run(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULL_AT", str(3 + 3 + 2))
    code, err = scripts("mmlu", *FLAGS, "--output", OUTPUT)
    assert code == 1
    assert err.endswith("error: [Errno 28] No space left on device: 'trace.jsonl'\n")
    (content,) = read_journals([journal_path(OUTPUT)])
    assert list(content.entries) == [0]
    assert "error" not in content.entries[0]
    monkeypatch.delenv("FULL_AT")
    assert scripts("mmlu", *FLAGS, "--output", OUTPUT, "--resume")[0] == 0
    assert timeless(load(OUTPUT)) == uninterrupted(scripts)
