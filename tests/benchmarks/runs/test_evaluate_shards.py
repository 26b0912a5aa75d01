"""Several processes of one run: they divide the work, stop together, and write the file that one process writes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import HANG_SECONDS
from helpers.evaluation import Scripts, load, timeless
from pdevis.benchmarks.runs.distributed import DistEnv, join_processes
from pdevis.benchmarks.runs.journal import Journal, find_journals, journal_path
from pdevis.benchmarks.runs.result_files import read_meta

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
LAUNCHER += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", "2"]


@pytest.fixture
def scripts(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scripts:
    monkeypatch.chdir(tmp_path)
    return Scripts(tiny_folder("llama", 0, 3), tiny_folder("llama", 1, 3), capsys)


def test_every_unit_belongs_to_one_process_and_groups_stay_together() -> None:
    units = [0, 1, 2, 5, 6, 7, 8, 9, 14]
    for size in (1, 2, 3, 20):
        parts = [DistEnv(rank, size).split(units) for rank in range(size)]
        assert sorted(unit for part in parts for unit in part) == units
        assert len(parts[0]) - len(parts[-1]) <= 1
    parts = [DistEnv(rank, 2).split(units, group=3) for rank in range(2)]
    assert parts == [[0, 1, 2, 6, 7, 8, 14], [5, 9]]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    second = DistEnv(1, 2, 1)
    assert second.device("cuda:0,cuda:3") == "cuda:3"
    assert second.device("cuda:3") == "cuda:3"
    with pytest.raises(ValueError, match=r"'a,b,c': must name one device, or one for each of 2 processes"):
        second.device("a,b,c")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [DistEnv(rank, 4, rank).device(None) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert second.device(None, "cuda:0") is None  # another flag names the devices
    assert DistEnv().device(None) is None


def test_a_note_if_accelerate_has_started_only_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert join_processes(Namespace(target_device=None, device=None)) == DistEnv()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert join_processes(Namespace(target_device=None, device=None)) == DistEnv()
    assert "accelerate launch --multi_gpu --num_processes N" in capsys.readouterr().err


class ScriptedEnv(DistEnv):
    """A `DistEnv` whose other process sends `other_value`."""

    other_value: object = None

    def gather(self, value: object) -> list[object]:
        return [value, ScriptedEnv.other_value] if self.is_main else [ScriptedEnv.other_value, value]


def test_all_processes_stop_if_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("own")

    assert ScriptedEnv(0, 2).run_on_all(lambda: 3) == 3
    monkeypatch.setattr(ScriptedEnv, "other_value", (True, "other"))
    with pytest.raises(ValueError, match="other"):
        ScriptedEnv(0, 2).run_on_all(lambda: 3)
    with pytest.raises(SystemExit) as stopped:
        ScriptedEnv(1, 2).run_on_all(fail)
    assert stopped.value.code == 2
    monkeypatch.setattr(ScriptedEnv, "other_value", (False, "disk"))
    with pytest.raises(OSError, match="disk"):
        ScriptedEnv(0, 2).run_on_all(lambda: 3)


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(scripts: Scripts) -> None:
    flags = ("--k", 5, "--gen_len", 8, "--gamma", 2)
    assert scripts("mmlu", *flags, "--output", "one.json")[0] == 0
    one = timeless(load(Path("one.json")))
    process = scripts.start("mmlu", *flags, "--output", "two.json", launcher=LAUNCHER)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, err
    assert timeless(load(Path("two.json"))) == one
    assert "mmlu, process 0: 100%" in err
    assert "3/3" in err
    assert read_meta(Path("two.json"))["runs"][0]["processes"] == 2
    assert find_journals(Path("two.json")) == []

    # one process resumes what two processes left unfinished
    meta = read_meta(Path("two.json"))
    entries = load(Path("two.json"))
    header = {name: meta[name] for name in ("benchmark", "settings", "versions", "pair")}
    for rank, unit in ((0, 2), (1, 1), (1, 3)):
        with Journal(journal_path(Path("three.json"), rank), header) as journal:
            journal.add(unit, entries[unit])
    code, err = scripts("mmlu", *flags, "--output", "three.json", "--resume")
    assert code == 0
    assert "3 of 5 items are done already" in err
    assert timeless(load(Path("three.json"))) == one
    assert find_journals(Path("three.json")) == []


@pytest.mark.slow
def test_a_mistake_is_reported_once(scripts: Scripts) -> None:
    process = scripts.start("mmlu", "--output", ".", launcher=LAUNCHER)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode
    assert err.count("error: --output .: is a folder") == 1
