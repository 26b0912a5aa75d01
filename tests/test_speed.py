"""The speed comparison: what it counts and how it reports, never how fast this machine is."""

import json
import runpy
from pathlib import Path

import pytest

from pdevis.benchmarks.speed import Contestant, Timing, measure, ratio, report
from pdevis.records import DecodeStats

SCRIPT = Path(__file__).parent.parent / "evaluation" / "speed" / "evaluate_speed.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_contestants_take_turns_in_alternating_order():
    calls = []

    def contestant(name: str) -> Contestant:
        return Contestant(name, lambda ids, length: (calls.append((name, ids[0], length)) or [1] * length, None))

    timings = measure([contestant("a"), contestant("b")], [[10], [20]], 5)
    assert calls[:2] == [("a", 10, 8), ("b", 10, 8)], "warm-up"
    assert calls[2:] == [("a", 10, 5), ("b", 10, 5), ("b", 20, 5), ("a", 20, 5)]
    assert [timing.tokens for timing in timings] == [[5, 5], [5, 5]]


def test_ratios_are_of_sums_with_an_interval_around_them():
    ours = Timing("ours", seconds=[1.0, 3.0], tokens=[10, 10], ids=[[1], [2]])
    other = Timing("other", seconds=[2.0, 3.0], tokens=[10, 10], ids=[[1], [2]])
    value, low, high = ratio(ours, other)
    assert value == pytest.approx((20 / 4) / (20 / 5))
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(2.0)


def test_report_counts_equal_answers_and_leaves_out_what_was_not_measured():
    stats = DecodeStats(
        drafted=8, draft_steps=8, accepted=6, new_tokens=10, rounds=4, draft_seconds=0.4, verify_seconds=0.8
    )
    plain = Timing("plain", [1.0], [10], [[1, 2]])
    ours = Timing("ours", [0.5], [10], [[1, 3]], [stats])
    rows = report([plain, ours], ("plain", "absent"))
    assert rows[1]["same_ids"] == 0
    assert rows[1]["acceptance_rate"] == 0.75
    assert rows[1]["draft_ms_per_token"] == pytest.approx(50)
    assert rows[1]["verify_ms_per_round"] == pytest.approx(200)
    assert list(rows[1]["ratios"]) == ["plain"]
    assert "acceptance_rate" not in rows[0]


def test_the_script_on_a_tiny_model(main, tiny_folder, tmp_path, capsys):
    output = tmp_path / "speed.json"
    folder = str(tiny_folder("llama"))
    argv = ["--target_model", folder, "--device", "cpu", "--modes", "exact,skip", "--gammas", "2", "--prompts", "2"]
    assert main([*argv, "--length", "6", "--output", str(output)]) == 0
    table = capsys.readouterr().out
    for name in ("pdevis, target alone", "transformers generate", "pdevis, exact, γ=2", "skip planned"):
        assert name in table
    kept = json.loads(output.read_text())
    assert [row["same_ids"] for row in kept["rows"]] == [2, 2, 2, 2]
    assert len(kept["raw"][0]["seconds"]) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gammas", "2,0"], ["--gammas", "0", "at least 1"]),
        (["--modes", "fast"], ["--modes", "'fast'", "parallel"]),
        (["--thresholds", "x"], ["--thresholds", "'x'"]),
        (["--prompts", "0"], ["--prompts", "0"]),
        (["--output", "no/such/folder/x.json"], ["--output", "no/such/folder/x.json"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert said.count("\n") == 1
