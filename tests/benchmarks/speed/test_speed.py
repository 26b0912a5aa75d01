"""The speed comparison from flags to files: who takes part, what is kept, how it goes on. Never how fast it is."""

import json
import runpy

import pytest

from helpers import ROOT
from pdevis.benchmarks.speed import decoders as speed
from pdevis.benchmarks.speed import speed_run
from pdevis.benchmarks.speed.decoders import PLAIN, Contestant, measure, warm_up
from pdevis.util.interleaving import interleaved_order

THEIRS = ["transformers generate", "transformers prompt lookup"]
ASSISTED = ["transformers assisted, defaults", "transformers assisted, γ=2"]


@pytest.fixture
def main():
    return runpy.run_path(str(ROOT / "evaluation" / "speed" / "evaluate_speed.py"))["main"]


@pytest.fixture
def flags(tiny_folder):
    """Two tiny models, two prompts, six tokens."""
    models = ["--target_model", str(tiny_folder("llama")), "--drafter_model", str(tiny_folder("llama", 1, 2))]
    return [*models, "--device", "cpu", "--prompts", "2", "--length", "6", "--gammas", "2", "--no-progress"]


def contestant(name, calls, kind="peer"):
    return Contestant(name, lambda ids, length: (calls.append((name, ids[0], length)) or [1] * length, None), kind)


def test_contestants_take_turns_in_changing_order():
    assert [interleaved_order(3, number) for number in range(4)] == [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]]
    calls = []
    both = [contestant("a", calls), contestant("b", calls)]
    found = [measure(both, ids, 5, number) for number, ids in enumerate([[10], [20]])]
    assert calls == [("a", 10, 5), ("b", 10, 5), ("b", 20, 5), ("a", 20, 5)]
    assert [list(each) for each in found] == [["a", "b"]] * 2, "the order of the rows does not change"
    assert found[0]["a"]["ids"] == [1] * 5


def test_a_peer_that_fails_is_left_out_by_name_and_ours_is_not():
    def fail(ids, length):
        raise RuntimeError("no such\nkernel")

    good = contestant("good", [])
    kept, left_out = warm_up([good, Contestant("bad", fail)], [1])
    assert kept == [good]
    assert left_out == {"bad": "it fails: RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="kernel"):
        warm_up([Contestant("ours", fail, "speculative")], [1])


def test_all_contestants_on_tiny_models(main, flags, tmp_path, capsys):
    output = tmp_path / "speed.json"
    assert main([*flags, "--gammas", "2,auto", "--modes", "exact,skip", "--output", str(output)]) == 0
    kept = json.loads(output.read_text())
    ours = [f"pdevis, {rule}, γ={gamma}" for rule in ("exact", "skip planned τ=0.9 W=2") for gamma in (2, "auto")]
    rows = {row["name"]: row for row in kept["rows"]}
    assert list(rows) == [PLAIN, THEIRS[0], *ASSISTED, THEIRS[1], *ours]
    assert [row["same_ids"] for row in rows.values()] == [2] * len(rows)
    assert kept["equality"]["all_equal"]
    assert all(row["tokens"] == 12 for row in rows.values())
    assert rows[ours[0]]["drafted"] > 0
    assert sum(rows[ours[0]]["round_share"].values()) == pytest.approx(1)
    assert kept["left_out"] == {"llama.cpp, no file": "no --gguf FILE"}
    assert kept["draft_step"]["steps"] == 2 * 24
    assert ours[0] in kept["draft_step"]["speedup_in_rounds"]
    assert kept["memory"]["peak_bytes"] > kept["memory"]["weight_bytes"]["both"] > 0
    assert {entry["kind"] for entry in kept["entries"]} == {"prompt", "draft-step", "memory"}
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*rows, "left out: llama.cpp", "peak memory", "draft step", "all greedy"])
    assert not list(tmp_path.glob("*.partial.jsonl"))


def test_further_drafters_by_their_flags(main, flags, tmp_path, capsys):
    output, lanes = (
        tmp_path / "speed.json",
        "--draft_mode parallel --threshold -2 --window 4 --mlp_window 1 --keep_last 2",
    )
    also = ["--also", "--draft_mode exact", "--also", f"{lanes} --check inline --no-calibrate"]
    only = ["--without", "transformers", "--no_memory", "--output", str(output)]
    assert main([*flags, "--modes", "exact", *also, *only]) == 0
    names = [row["name"] for row in json.loads(output.read_text())["rows"]]
    rule = "parallel inline τ=-2 W=4 (4 + 1) ends 2 + 2 uncalibrated"
    assert names == [PLAIN, "pdevis, exact, γ=2", f"pdevis, {rule}, γ=2"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([*flags, "--also", "--windows 3"])
    assert leaving.value.code == 2
    assert "--windows" in capsys.readouterr().err.splitlines()[-1]


def test_a_drafter_of_its_own_is_needed_for_assisted_generation(main, tiny_folder, capsys):
    argv = ["--target_model", str(tiny_folder("llama")), "--device", "cpu", "--prompts", "1", "--length", "4"]
    assert main([*argv, "--gammas", "2", "--no_memory", "--no-progress"]) == 0
    shown = capsys.readouterr().out
    for name in ASSISTED:
        assert f"left out: {name} (needs a drafter model of its own, not 'self')" in shown


def test_without_leaves_out_and_says_so(main, flags, capsys):
    assert main([*flags, "--without", "transformers,speculative", "--no_memory"]) == 0
    shown = capsys.readouterr().out
    assert f"left out: {THEIRS[0]} (--without)" in shown
    assert "left out: draft-step (--without)" in shown
    assert "left out: speculative (--without)" in shown
    assert "exact" not in shown


def test_ids_in_another_weight_format_are_not_compared(main, flags, tmp_path, capsys):
    output = tmp_path / "speed.json"
    assert main([*flags, "--target_precision", "int8", "--no_memory", "--output", str(output)]) == 0
    found = json.loads(output.read_text())["equality"]
    assert found["compared"] == ["pdevis, exact, γ=2"]
    assert set(found["not_compared"]) == {*THEIRS, *ASSISTED}
    assert "not compared: transformers generate (float32 weights against int8" in capsys.readouterr().out


def test_exit_code_1_where_an_answer_differs(main, flags, monkeypatch, capsys):
    true = speed.measure

    def wrong(contestants, ids, length, number):
        found = true(contestants, ids, length, number)
        found["pdevis, exact, γ=2"]["ids"][-1] += 1
        return found

    monkeypatch.setattr(speed_run, "measure", wrong)
    assert main([*flags, "--without", "transformers", "--no_memory"]) == 1
    assert "greedy outputs differ from plain decoding's: pdevis, exact, γ=2 on 2" in capsys.readouterr().out


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C while the second prompt is measured."""
    true = speed.measure

    def stop(contestants, ids, length, number):
        if number == 1:
            raise KeyboardInterrupt
        return true(contestants, ids, length, number)

    monkeypatch.setattr(speed_run, "measure", stop)
    return lambda: monkeypatch.setattr(speed_run, "measure", true)


def test_a_stopped_run_goes_on(main, flags, tmp_path, stopped, capsys):
    output = tmp_path / "speed.json"
    argv = [*flags, "--without", "transformers", "--no_memory", "--output", str(output)]
    assert main(argv) == 130
    assert "--resume goes on" in capsys.readouterr().err
    first = json.loads((tmp_path / "speed.json.partial.jsonl").read_text().splitlines()[2])
    stopped()
    assert main(argv) == 2, "what is there is not overwritten unasked"
    assert "--resume" in capsys.readouterr().err
    assert main([*argv, "--length", "7", "--resume"]) == 2
    assert "length 7, there 6" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    kept = json.loads(output.read_text())
    assert kept["entries"][0] == first["entry"], "what was finished has not been measured again"
    assert kept["rows"][0]["prompts"] == 2
    assert main([*argv, "--resume"]) == 0
    assert "is complete" in capsys.readouterr().err


def test_a_stopped_run_without_output_shows_what_is_finished(main, flags, stopped, capsys):
    assert main([*flags, "--without", "transformers", "--no_memory"]) == 130
    assert "PARTIAL" in capsys.readouterr().out


def test_specbench_prompts_take_turns_by_category(main, flags, tmp_path, capsys):
    output = tmp_path / "speed.json"
    samples = str(ROOT / "Data" / "samples" / "specbench.jsonl")
    argv = [*flags, "--without", "transformers", "--no_memory", "--output", str(output)]
    assert main([*argv, "--specbench", samples, "--categories", "translation,math"]) == 0
    kept = json.loads(output.read_text())
    assert [entry["category"] for entry in kept["entries"]] == ["translation", "math"]
    assert list(kept["categories"]) == ["math", "translation"]
    assert main([*argv, "--specbench", samples, "--categories", "cooking", "--overwrite"]) == 2
    assert "'cooking' must be among writing" in capsys.readouterr().err


def test_a_prompt_that_leaves_no_room_is_named(main, flags, capsys):
    assert main([*flags, "--length", "500", "--no_memory"]) == 2
    assert "prompt 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gammas", "2,0"], ["--gammas", "0", ">= 1"]),
        (["--gammas", "auto,x"], ["--gammas", "'x'", "auto"]),
        (["--modes", "fast"], ["--modes", "'fast'", "parallel"]),
        (["--thresholds", "x"], ["--thresholds", "'x'"]),
        (["--prompts", "0"], ["--prompts", "0"]),
        (["--prompts", "99"], ["--prompts", "99", "at most 12"]),
        (["--without", "plain"], ["--without", "'plain'", "lookup"]),
        (["--categories", "math"], ["--categories", "--specbench"]),
        (["--specbench", "no/such.jsonl"], ["no/such.jsonl", "no such file"]),
        (["--gguf", "no/such.gguf"], ["--gguf", "no/such.gguf", "does not exist"]),
        (["--resume"], ["--resume", "--output"]),
        (["--output", "no/such/folder/x.json"], ["--output", "no/such/folder"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert said.count("\n") == 1
