"""python -m pdevis.simulate: from flags to table, JSON and plot, and its error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.recordings import SIZES, a_round, exact_trace, make_profile, parallel_trace, save, write_trace
from pdevis.config import DraftConfig
from pdevis.simulate.__main__ import build_parser, main
from pdevis.trace import Sizes, TraceWriter


@pytest.fixture
def exact(tmp_path):
    return exact_trace(tmp_path)


@pytest.fixture
def parallel(tmp_path):
    return parallel_trace(tmp_path)


@pytest.fixture
def simulate(capsys):
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def simulated(simulate):
    def run(*argv: object) -> dict:
        code, out, err = simulate(*argv, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def test_numbers_computed_by_hand(exact, simulated):
    result = simulated("--trace", exact, "--devices", "1,2", "--keep_first", "1", "--thresholds", "0.9,0.99")
    rows = {(row["devices"], row["threshold"]): row for row in result["rows"]}
    assert list(rows) == [(1, 0.9), (1, 0.99), (2, 0.9), (2, 0.99)]
    one, two = rows[1, 0.9], rows[2, 0.9]
    assert one["draft_step_ms"] == pytest.approx(16)
    assert (one["draft_speedup"], one["speedup_over_exact"]) == pytest.approx((1, 1))
    assert one["speedup_over_plain"] == pytest.approx(5 / 224 * 80)
    assert (one["target_idle_ms"], one["drafter_idle_ms"], one["serial_depth"]) == pytest.approx((32, 80, 8))
    # exact: 12 + 4 / 2; planned: 3 attentions, 3 batches of MLPs, half the head
    assert two["draft_step_ms"] == pytest.approx((14 + 11) / 2)
    assert two["draft_speedup"] == pytest.approx(16 / 12.5)
    assert two["speedup_over_exact"] == pytest.approx(112 / 105)
    assert (two["target_idle_ms"], two["serial_depth"], two["tokens_per_round"]) == pytest.approx((25, 7, 2.5))
    assert rows[2, 0.99]["draft_step_ms"] == pytest.approx(14)
    limits = result["limits"]
    assert limits["draft_share"] == pytest.approx(32 / 112)
    assert (limits["amdahl"], limits["perfect_overlap"]) == pytest.approx((1.4, 1.4))
    assert (limits["draft_ms_per_round"], limits["verify_ms_per_round"]) == pytest.approx((32, 80))
    assert result["costs"]["draft_ms"] == pytest.approx(16)


def test_links_contention_and_shares(exact, simulated):
    few = ("--trace", exact, "--devices", "2", "--keep_first", "1")
    result = simulated(*few, "--link_us", "1000", "--contention", "1.5")
    assert result["rows"][0]["draft_step_ms"] == pytest.approx((21 + 21.5) / 2)
    result = simulated(*few, "--attention_share", "1", "--head_share", "0")
    assert (result["costs"]["attention_ms"], result["costs"]["mlp_ms"]) == pytest.approx((4, 0))
    assert result["rows"][0]["draft_step_ms"] == pytest.approx((16 + 12) / 2)
    exact_on_two = "--trace", exact, "--devices", "2", "--mode", "exact", "--mlps", "rows"
    result = simulated(*exact_on_two, "--repeated_share", "0.25")
    assert result["costs"]["repeated_ms"] == pytest.approx(0.5)
    assert result["rows"][0]["draft_step_ms"] == pytest.approx(4 * (1 + 0.5 + 0.75) + 2)


def test_overlap(exact, simulated):
    result = simulated("--trace", exact, "--overlap", "--mode", "exact", "--devices", "1")
    (row,) = result["rows"]
    # the first round is accepted in full and its guess is right with β = 3/4: the second draft is then ready
    assert row["target_idle_ms"] == pytest.approx((32 + 8) / 2)
    assert row["drafter_idle_ms"] == pytest.approx((3 / 4 * (80 - 16 - 32) + 1 / 4 * 80 + 80) / 2)
    assert row["threshold"] is None
    assert any(line.startswith("overlap: ") for line in result["assumptions"])
    slowed = simulated("--trace", exact, "--overlap", "--mode", "exact", "--devices", "1", "--target_contention", "1.5")
    assert slowed["rows"][0]["target_idle_ms"] == row["target_idle_ms"]
    ratio = row["speedup_over_plain"] / slowed["rows"][0]["speedup_over_plain"]
    assert ratio == pytest.approx((2 * 80 + 40 + 24) / (2 * 80 + 40))


def test_acceptance_is_that_of_the_rule_if_it_was_recorded(exact, parallel, simulated):
    argv = ("--trace", exact, parallel, "--devices", "1,2,4", "--keep_first", "1", "--thresholds", "0.9,0.8")
    notes = {(row["devices"], row["threshold"]): row["note"] for row in simulated(*argv)["rows"]}
    other = "acceptance as recorded in mode exact: not measured in this mode"
    lanes = (
        "acceptance as recorded in mode parallel τ=0.9, 2 + 2 lanes: not measured with this number of attention lanes"
    )
    assert notes == {
        **{(1, 0.9): None, (1, 0.8): None, (2, 0.9): None, (2, 0.8): other},
        **{(4, 0.9): lanes, (4, 0.8): other},
    }
    rows = simulated(*argv)["rows"]
    assert [row["acceptance_rate"] for row in rows] == [0.75, 0.75, 0.25, 0.75, 0.25, 0.75]
    assert rows[2]["tokens_per_round"] == 1.5
    (row,) = simulated("--trace", parallel, "--draft_ms", "16", "--devices", "2", "--keep_first", "1")["rows"]
    assert row["acceptance_measured"]
    result = simulated("--trace", parallel, "--draft_ms", "16", "--thresholds", "0.8", "--devices", "2")
    note = "acceptance as recorded in mode parallel τ=0.9, 2 + 2 lanes: not measured"
    assert result["rows"][0]["note"] == f"{note} at this threshold, with these first layers kept"
    assert result["limits"]["note"] == f"{note} in this mode"


def test_a_profile_sets_times_and_no_flags(exact, simulated, tmp_path):
    path = save(make_profile(draft=DraftConfig(mode="exact", keep_first=0)), tmp_path / "tuned.json")
    result = simulated("--trace", exact, "--profile", path, "--devices", "2")
    assert result["costs"]["draft_ms"] == pytest.approx(10)
    assert result["costs"]["target_ms"] == pytest.approx({"1": 1000, "5": 1100})
    assert result["mode"] == "parallel"


def test_the_table(exact, parallel, simulate):
    code, out, err = simulate("--trace", exact, parallel, "--keep_first", "1", "--devices", "1,2", "--overlap")
    assert (code, err) == (0, "")
    for part in (
        "simulated: parallel, overlap, on the rounds of exact.jsonl (exact, 2 rounds, 4 draft steps)",
        "an exact draft step takes 16.00 ms (median of the exact traces)",
        "0.75 measured",
        "0.25 measured",
        "is f = 0.286",
        "1/(1-f) = 1.40x",
        "plain decoding takes 80.00 ms a token (a forward over 3: none over 1 was timed)",
    ):
        assert part in out
    code, out, err = simulate("--trace", exact, "--devices", "2", "--target_ms", "80", "--link_us", "20")
    assert "[1] acceptance as recorded in mode exact: not measured in this mode" in out
    assert "80.00 ms a token, as long as a forward over several" in out
    assert "an exchange takes 20 µs" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--devices", "0"], "--devices: '0' must be an integer >= 1"),
        (["--devices", "2,2"], "--devices: '2,2' names 2 twice"),
        (["--mode", "fast"], "--mode: 'fast' must be among parallel, skip, exact"),
        (["--thresholds", "x"], "--thresholds: 'x'"),
        (["--window", "0"], "--window: 0 must be an integer >= 1"),
        (["--link_us", "-1"], "--link_us: '-1' must be a number >= 0"),
        (["--draft_ms", "0"], "--draft_ms: '0' must be a number > 0"),
        (["--target_ms", "nan"], "--target_ms: 'nan' must be a number > 0"),
        (["--target_ms", "inf"], "--target_ms: 'inf' must be a number > 0"),
        (["--contention", "0.5"], "--contention: '0.5' must be a number >= 1"),
        (["--target_contention", "0.5"], "--target_contention: '0.5' must be a number >= 1"),
        (["--repeated_share", "2"], "--repeated_share: '2' must be a number >= 0 and <= 1"),
        (["--head_share", "1.5"], "--head_share: '1.5' must be a number >= 0 and <= 1"),
        (["--profile", "none.json"], "none.json: cannot be read"),
        (["--trace", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--plot", "p.pdf"], "--plot p.pdf: must end in .png"),
        (["--thresold", "1"], "unknown flag --thresold; did you mean --thresholds?"),
    ],
)
def test_mistakes_are_one_line_and_code_2(exact, simulate, argv, message):
    code, out, err = simulate("--trace", exact, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_traces_that_do_not_fit(exact, parallel, simulate, tmp_path):
    def error_of(*paths: Path, flags: tuple[str, ...] = ()) -> str:
        code, out, err = simulate("--trace", *paths, *flags)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        return err

    assert "--draft_ms: missing, must be the ms of an exact draft step" in error_of(parallel)
    several = write_trace(tmp_path / "several.jsonl", [a_round(2, 1)], draft_device="cpu:0,cpu:1")
    assert "--draft_ms: missing" in error_of(several)
    overlapped = write_trace(tmp_path / "overlapped.jsonl", [a_round(2, 1)], overlap=True)
    assert "--draft_ms: missing" in error_of(overlapped)
    assert "overlapped.jsonl: has no similarities" in error_of(overlapped, flags=("--draft_ms", "9"))
    assert "has no rounds" in error_of(write_trace(tmp_path / "empty.jsonl", []))
    plain = write_trace(tmp_path / "plain.jsonl", [a_round(0, 0, draft_seconds=0.0)])
    assert "plain.jsonl: nothing was drafted in its 1 rounds" in error_of(plain, flags=("--draft_ms", "9"))
    other = write_trace(tmp_path / "other.jsonl", [a_round(2, 1)], drafter="smaller")
    assert "other.jsonl: has drafter smaller, must be small as in exact.jsonl" in error_of(exact, other)
    untimed = write_trace(tmp_path / "untimed.jsonl", [a_round(2, 1, verify_seconds=0.0)])
    assert "--target_ms: missing" in error_of(untimed)


def test_a_trace_of_another_drafter(exact, simulate, tmp_path):
    pair = json.loads(exact.read_text().splitlines()[0])["pair"]
    writer = TraceWriter(tmp_path / "wide.jsonl")
    writer.open(pair=pair, layers=4, sizes=Sizes(SIZES.attention, 9, SIZES.head))
    writer.generation(number=0, prompt_tokens=1, gamma=2, temperature=0.0, overlap=False)
    writer.round(generation=0, **a_round(1, 1))
    writer.close()
    assert "wide.jsonl: has sizes" in simulate("--trace", exact, tmp_path / "wide.jsonl")[2]


@pytest.mark.parametrize("mode", ["parallel", "exact"])
def test_as_a_command_with_json_and_plot(exact, tmp_path, mode):
    argv = ["--trace", "exact.jsonl", "--mode", mode, "--link-us", "10", "--plot", "p.png", "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "pdevis.simulate", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert len(json.loads(run.stdout)["rows"]) == 3
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_of_a_plot_is_created(exact, simulate, tmp_path):
    plot = tmp_path / "new" / "p.png"
    code, _, err = simulate("--trace", exact, "--plot", plot)
    assert (code, err) == (0, f"created the folder {plot.parent}\n")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_help_and_the_whole_command_need_no_torch(exact):
    probe = (
        "import sys, pdevis.simulate.__main__ as m; m.build_parser().format_help(); "
        "m.main(['--trace', sys.argv[1]]); print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", probe, str(exact)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines()[-1] == "False", run.stderr


def test_the_flags_have_both_spellings():
    args = build_parser().parse_args(["--trace", "a", "b", "--keep-first", "3", "--attention_window", "4"])
    assert ([str(path) for path in args.trace], args.keep_first, args.attention_window) == (["a", "b"], 3, 4)
