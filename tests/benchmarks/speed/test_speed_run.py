"""The speed comparison from flags to files: decoders, results, resuming. Speed itself is not tested."""

import json
import runpy

import pytest

from helpers import ROOT
from pdevis.benchmarks.speed import speed_run
from pdevis.benchmarks.speed.decoders import PLAIN, Decoder, measure, warm_up
from pdevis.util.prompts import measurement_order

TRANSFORMERS = ["transformers generate", "transformers prompt lookup"]
ASSISTED = ["transformers assisted, defaults", "transformers assisted, γ=2"]


@pytest.fixture
def main():
    return runpy.run_path(str(ROOT / "evaluation" / "speed" / "evaluate_speed.py"))["main"]


@pytest.fixture
def flags(tiny_folder):
    """Two tiny models, two prompts, six tokens."""
    models = ["--target_model", str(tiny_folder("llama")), "--drafter_model", str(tiny_folder("llama", 1, 2))]
    return [*models, "--device", "cpu", "--prompts", "2", "--length", "6", "--gammas", "2", "--no-progress"]


def decoder(name, calls, kind="peer"):
    return Decoder(name, lambda ids, length: (calls.append((name, ids[0], length)) or [1] * length, None), kind)


def test_decoders_are_interleaved_in_changing_order():
    assert [measurement_order(3, number) for number in range(4)] == [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]]
    calls = []
    both = [decoder("a", calls), decoder("b", calls)]
    measured = [measure(both, ids, length=5, prompt_number=number) for number, ids in enumerate([[10], [20]])]
    assert calls == [("a", 10, 5), ("b", 10, 5), ("b", 20, 5), ("a", 20, 5)]
    assert [list(results) for results in measured] == [["a", "b"]] * 2, "the order of the rows does not change"
    assert measured[0]["a"]["ids"] == [1] * 5


def test_a_baseline_that_fails_is_left_out_with_a_reason_but_errors_of_pdevis_are_raised():
    def fail(ids, length):
        raise RuntimeError("no such\nkernel")

    good = decoder("good", [])
    working = warm_up([good, Decoder("bad", fail)], [1])
    assert working.decoders == [good]
    assert working.left_out == {"bad": "it fails: RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="kernel"):
        warm_up([Decoder("ours", fail, "speculative")], [1])


def test_all_decoders_on_tiny_models(main, flags, tmp_path, capsys):
    output = tmp_path / "new" / "speed.json"
    assert main([*flags, "--gammas", "2,auto", "--modes", "exact,skip", "--output", str(output)]) == 0
    kept = json.loads(output.read_text())
    ours = [f"pdevis, {rule}, γ={gamma}" for rule in ("exact", "skip planned τ=0.9 W=2") for gamma in (2, "auto")]
    rows = {row["name"]: row for row in kept["rows"]}
    assert list(rows) == [PLAIN, TRANSFORMERS[0], *ASSISTED, TRANSFORMERS[1], *ours]
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
    shown, log = capsys.readouterr()
    assert f"created the folder {output.parent}" in log
    assert all(name in shown for name in [*rows, "left out: llama.cpp", "peak memory", "draft step", "all greedy"])
    assert not list(output.parent.glob("*.partial.jsonl"))


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


def test_assisted_generation_needs_a_separate_drafter(main, tiny_folder, capsys):
    argv = ["--target_model", str(tiny_folder("llama")), "--device", "cpu", "--prompts", "1", "--length", "4"]
    assert main([*argv, "--gammas", "2", "--no_memory", "--no-progress"]) == 0
    shown = capsys.readouterr().out
    for name in ASSISTED:
        assert f"left out: {name} (needs a drafter model of its own, not 'self')" in shown


def test_without_is_reported_as_the_reason(main, flags, capsys):
    assert main([*flags, "--without", "transformers,speculative", "--no_memory"]) == 0
    shown = capsys.readouterr().out
    assert f"left out: {TRANSFORMERS[0]} (--without)" in shown
    assert "left out: draft-step (--without)" in shown
    assert "left out: speculative (--without)" in shown
    assert "exact" not in shown


def test_ids_in_another_weight_format_are_not_compared(main, flags, tmp_path, capsys):
    output = tmp_path / "speed.json"
    assert main([*flags, "--target_precision", "int8", "--no_memory", "--output", str(output)]) == 0
    equality = json.loads(output.read_text())["equality"]
    assert equality["compared"] == ["pdevis, exact, γ=2"]
    assert set(equality["not_compared"]) == {*TRANSFORMERS, *ASSISTED}
    assert "not compared: transformers generate (float32 weights against int8" in capsys.readouterr().out


def test_exit_code_1_where_an_answer_differs(main, flags, monkeypatch, capsys):
    def wrong(decoders, ids, *, length, prompt_number):
        measured = measure(decoders, ids, length=length, prompt_number=prompt_number)
        measured["pdevis, exact, γ=2"]["ids"][-1] += 1
        return measured

    monkeypatch.setattr(speed_run, "measure", wrong)
    assert main([*flags, "--without", "transformers", "--no_memory"]) == 1
    assert "greedy outputs differ from plain decoding's: pdevis, exact, γ=2 on 2" in capsys.readouterr().out


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C while the second prompt is measured."""

    def stop(decoders, ids, *, length, prompt_number):
        if prompt_number == 1:
            raise KeyboardInterrupt
        return measure(decoders, ids, length=length, prompt_number=prompt_number)

    monkeypatch.setattr(speed_run, "measure", stop)
    return lambda: monkeypatch.setattr(speed_run, "measure", measure)


def test_a_stopped_run_is_resumed(main, flags, tmp_path, stopped, capsys):
    output = tmp_path / "speed.json"
    argv = [*flags, "--without", "transformers", "--no_memory", "--output", str(output)]
    assert main(argv) == 130
    assert "--resume to continue" in capsys.readouterr().err
    first = json.loads((tmp_path / "speed.json.partial.jsonl").read_text().splitlines()[2])
    stopped()
    assert main(argv) == 2, "existing results are not overwritten without --overwrite"
    assert "--resume" in capsys.readouterr().err
    assert main([*argv, "--length", "7", "--resume"]) == 2
    assert "length is 7, was 6" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    kept = json.loads(output.read_text())
    assert kept["entries"][0] == first["entry"], "finished prompts are not measured again"
    assert kept["rows"][0]["prompts"] == 2
    assert main([*argv, "--resume"]) == 0
    assert "is complete" in capsys.readouterr().err


def test_a_stopped_run_without_output_shows_what_is_finished(main, flags, stopped, capsys):
    assert main([*flags, "--without", "transformers", "--no_memory"]) == 130
    assert "PARTIAL" in capsys.readouterr().out


def test_specbench_prompts_are_interleaved_by_category(main, flags, tmp_path, capsys):
    output = tmp_path / "speed.json"
    samples = str(ROOT / "Data" / "samples" / "specbench.jsonl")
    argv = [*flags, "--without", "transformers", "--no_memory", "--output", str(output)]
    assert main([*argv, "--specbench", samples, "--categories", "translation,math"]) == 0
    kept = json.loads(output.read_text())
    assert [entry["category"] for entry in kept["entries"]] == ["translation", "math"]
    assert list(kept["categories"]) == ["math", "translation"]
    assert main([*argv, "--specbench", samples, "--categories", "cooking", "--overwrite"]) == 2
    assert "'cooking' must be among writing" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_for_the_context_is_named(main, flags, capsys):
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
        (["--specbench", "no/such.jsonl"], ["no/such.jsonl", "does not exist"]),
        (["--gguf", "no/such.gguf"], ["--gguf", "no/such.gguf", "does not exist"]),
        (["--resume"], ["--resume", "--output"]),
        (["--output", "/"], ["--output /", "is a folder"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert said.count("\n") == 1
