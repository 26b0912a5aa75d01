"""Trace files: round trip, and one-line errors."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.recordings import LAYERS, PAIR, SIZES, a_round, exact_pass, write_trace
from pdevis.config import DraftConfig
from pdevis.drafting.schedule import plan_schedule
from pdevis.simulate.trace_reader import read_trace
from pdevis.trace import BAND, TraceWriter, band, full


def test_band_and_full():
    matrix = [[float(10 * max(i, j) + min(i, j)) for j in range(3)] for i in range(3)]
    assert band(matrix) == [[10.0], [21.0, 20.0]]
    assert full([[10.0], [21.0, 20.0]]) == [[1.0, 10.0, 20.0], [10.0, 1.0, 21.0], [20.0, 21.0, 1.0]]


def test_distant_layers_and_nan_are_never_similar():
    size = BAND + 3
    rows = band([[0.5] * size for _ in range(size)])
    assert [len(row) for row in rows] == [*range(1, BAND + 1), BAND, BAND]
    assert full(rows)[BAND + 2][:3] == [-1.0, -1.0, 0.5]
    assert band([[1.0, float("nan")], [float("nan"), 1.0]]) == [[-1.0]]


@pytest.mark.parametrize("mode", ["skip", "parallel"])
def test_schedules_from_a_band_equal_those_from_the_matrix(mode):
    numbers = random.Random(5)
    for _ in range(20):
        matrix = [[round(numbers.random(), 4) for _ in range(25)] for _ in range(25)]
        draft = DraftConfig(mode=mode, threshold=0.3, window=4)
        assert plan_schedule(full(band(matrix)), draft) == plan_schedule(matrix, draft)


def test_written_and_read(tmp_path):
    first = a_round(2, 1, [exact_pass(0, 3, 0.123456789)], ahead=False)
    plain = a_round(0, 0, draft_seconds=0.0)
    path = write_trace(tmp_path / "run.jsonl", [first, plain], [], mode="skip", window=3)
    trace = read_trace(path)
    assert (trace.name, trace.layers, trace.sizes, trace.pair["target"]) == ("run.jsonl", LAYERS, SIZES, "big")
    assert trace.rule == DraftConfig("skip", window=3, attention_window=2, mlp_window=2)
    assert [(each.number, each.gamma, len(each.rounds)) for each in trace.generations] == [(0, 2, 2), (1, 2, 0)]
    one, other = trace.rounds
    assert (one.drafted, one.accepted, one.ahead, one.guessed) == (2, 1, False, None)
    assert (one.passes[0].tokens, one.passes[0].similarities[3]) == (3, [0.123457] * 4)
    assert (other.steps, other.passes) == (0, ())


def test_the_writer_flushes_every_line(tmp_path):
    writer = TraceWriter(tmp_path / "run.jsonl")
    assert not (tmp_path / "run.jsonl").exists()
    writer.open(pair=PAIR, layers=LAYERS, sizes=SIZES)
    writer.open(pair=PAIR, layers=LAYERS, sizes=SIZES)
    writer.generation(number=0, prompt_tokens=1, gamma="auto", temperature=0.7, overlap=True)
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["pdevis-trace", "generation"]
    with pytest.raises(ValueError, match=r"--trace .*run.jsonl: threshold has changed from 0.9 to 0.8"):
        writer.open(pair=PAIR | {"threshold": 0.8}, layers=LAYERS, sizes=SIZES)
    writer.close()


def test_the_writer_never_overwrites(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"--trace .*run.jsonl: already exists"):
        TraceWriter(path)
    assert path.read_text() == "mine"
    path.unlink()
    writer = TraceWriter(path)
    path.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        writer.open(pair=PAIR, layers=LAYERS, sizes=SIZES)
    with pytest.raises(ValueError, match="does not exist"):
        TraceWriter(tmp_path / "none" / "run.jsonl")


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = write_trace(tmp_path / "run.jsonl", [a_round(2, 1), a_round(2, 2, [exact_pass(0, 1, 0.5)])])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(list(read_trace(path).rounds)) == 1
    path.write_bytes(whole[:-1])
    assert len(list(read_trace(path).rounds)) == 2, "only its end of line is missing"


def broken(tmp_path, line, **changes):
    """Write a trace of one round with one line changed; None removes a key."""
    path = write_trace(tmp_path / "run.jsonl", [a_round(2, 1, [exact_pass(0, 1, 0.5)])])
    lines = path.read_text().splitlines()
    content = json.loads(lines[line - 1]) | changes
    lines[line - 1] = json.dumps({key: value for key, value in content.items() if value != "none"})
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (1, {"kind": "x"}, "line 1: is not a pdevis trace"),
        (1, {"version": 2}, "line 1: version = 2: must be 1"),
        (1, {"layers": 0}, "line 1: layers = 0: must be an integer >= 1"),
        (1, {"sizes": {"attention": 1, "mlp": 2}}, "line 1: head is missing"),
        (1, {"pair": PAIR | {"mode": "auto"}}, "line 1: mode = 'auto': must be exact, skip or parallel"),
        (1, {"pair": {}}, "line 1: mode is missing"),
        (2, {"kind": "turn"}, "line 2: is neither a generation nor a round"),
        (2, {"gamma": 0}, "line 2: gamma = 0: must be an integer >= 1 or 'auto'"),
        (2, {"overlap": 1}, "line 2: overlap = 1: must be True or False"),
        (3, {"generation": 4}, "line 3: generation = 4: must be 0, the current generation"),
        (3, {"accepted": 3}, "line 3: accepted = 3: must be <= 2"),
        (3, {"steps": 1}, "line 3: steps = 1: must be >= 2"),
        (3, {"verify_seconds": "none"}, "line 3: verify_seconds is missing"),
        (3, {"verify_seconds": -1}, "line 3: verify_seconds = -1: must be a finite number >= 0"),
        (3, {"guessed": "yes"}, "line 3: guessed = 'yes': must be True or False"),
        (3, {"passes": [{"step": 0, "tokens": 1, "similarities": [[1.0]]}]}, "line 3: similarities: must be 4 lists"),
        (
            3,
            {"passes": [{"step": 0, "tokens": 1, "similarities": [[1.0], [1.0, 1.0], [1.0], [1.0]]}]},
            "line 3: similarities: list 3 must hold 3 numbers",
        ),
        (3, {"passes": 3}, "line 3: "),
    ],
)
def test_errors_name_the_line(tmp_path, line, changes, said):
    path = broken(tmp_path, line, **changes)
    with pytest.raises(ValueError, match=r"run\.jsonl, ") as error:
        read_trace(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files(tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(ValueError, match=r"run.jsonl: cannot be read: No such file"):
        read_trace(path)
    for text, said in (
        ("", "run.jsonl: is not a pdevis trace: it has no complete line"),
        ('{"kind": ', "it has no complete line"),
        ("hello\n", "line 1: is not JSON"),
        ("[1]\n", "line 1: is not a pdevis trace"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_trace(path)
    path.write_text(write_trace(tmp_path / "good.jsonl").read_text() + '{"kind": "round", "generation": 0}\n')
    with pytest.raises(ValueError, match="line 2: generation = 0: no generation has started"):
        read_trace(path)


def test_needs_no_torch():
    probe = "import sys, pdevis.trace, pdevis.simulate.trace_reader; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_one_of_two_writers_gets_the_file(tmp_path: Path) -> None:
    first, second = TraceWriter(tmp_path / "run.jsonl"), TraceWriter(tmp_path / "run.jsonl")
    first.create()
    with pytest.raises(ValueError, match="already exists; name a new file"):
        second.create()
    first.create()
    first.close()


def test_a_full_disk_keeps_the_rounds_before(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "whole.jsonl", [a_round(2, 2), a_round(2, 1)])
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 9, before[1]))
    try:
        with pytest.raises(OSError, match=r"--trace .*cut.jsonl: cannot be written: .*; the rounds before are kept"):
            write_trace(tmp_path / "cut.jsonl", [a_round(2, 2), a_round(2, 1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "cut.jsonl").read_bytes().splitlines() == path.read_bytes().splitlines()[:-1]
