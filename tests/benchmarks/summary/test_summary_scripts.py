"""The summary scripts from the command line: tables, JSON, plots, Spec-Bench's files, one line per mistake."""

from __future__ import annotations

import json
import runpy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.results import entries, save, save_journal
from pdevis.benchmarks.tasks import BENCHMARKS

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def summary(capsys: pytest.CaptureFixture[str]) -> Main:
    """summary(benchmark, *argv): exit code, stdout and stderr of a summary script."""

    def run(benchmark: str, *argv: object, folder: str = "summary") -> tuple[int, str, str]:
        name = "summary" if folder == "summary" else "evaluate"
        main = runpy.run_path(str(ROOT / folder / benchmark / f"{name}_{benchmark}.py"))["main"]
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as leaving:
            code = leaving.code
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_summary_of_what_the_evaluate_script_writes(
    benchmark: str, summary: Main, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Both scripts, tiny models, the samples of this project: sums of the summary against sums over the result file."""
    lines = benchmark == "specbench"
    results = tmp_path / ("results.jsonl" if lines else "results.json")
    flags = ("--max_examples", 3, "--max_gen_len", 6, "--out") if lines else ("--k", 3, "--gen_len", 6, "--output")
    models = ("--target_model", tiny_folder("llama", max_position_embeddings=2048), "--gamma", 3, "--no-progress")
    code, _, err = summary(benchmark, *models, *flags, results, folder="evaluation")
    assert code == 0, err
    output, plot = tmp_path / "summary.json", tmp_path / "plot.png"
    code, out, err = summary(benchmark, "--input", results, "--output", output, "--plot", plot)
    assert (code, err) == (0, "")
    found = json.loads(output.read_text())
    text = results.read_text()
    made = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    assert (found["benchmark"], found["items"], found["errors"], found["partial"]) == (benchmark, 3, 0, False)
    keys = ("target", "draft", "speculative") if lines else ("target_only", "drafter_only", "speculative")
    for method, key in zip(("target", "drafter", "speculative"), keys, strict=True):
        tokens, seconds = (sum(entry[key][name] for entry in made) for name in ("tokens_generated", "seconds"))
        assert found["methods"][method]["tokens"] == tokens
        assert found["methods"][method]["tokens_per_second"]["value"] == pytest.approx(tokens / seconds)
    spec = [entry["speculative"] for entry in made]
    rate = sum(block["accepted"] for block in spec) / sum(block["drafted"] for block in spec)
    assert found["headline"]["acceptance_rate"]["value"] == pytest.approx(rate)
    assert found["headline"]["same_as_target"]["share"] == 1
    assert found["run"]["settings"]["max_new_tokens"] == 6
    if not lines:
        differences = found["headline"]["quality_speculative_minus_target"]
        assert all(each["value"] == 0 and not each["significant"] for each in differences.values())
    if benchmark == "wmt":
        assert found["comparison"]["speculative"]["BLEU"]["p_value"] == 1
        assert "version:2" in found["methods"]["target"]["corpus"]["BLEU"]["signature"]
    if benchmark == "ifeval":
        assert "followed_strict" in found["methods"]["target"]["quality"]
    assert "speed speculative / target: " in out
    assert "\x1b" not in out
    assert png_size(plot)[0] == 1500


def test_table_says_what_failed_and_leaves_out_what_is_missing(summary: Main, tmp_path: Path) -> None:
    made = entries("mmlu", 5, methods=("target",))
    made[2] = {"question_id": 2, "subject": "subject_2", "error": "RuntimeError: out of memory"}
    code, out, _ = summary("mmlu", "--input", save(tmp_path / "r.json", made), "--output", tmp_path / "s.json")
    assert code == 0
    assert "5 items, 1 failed" in out
    assert "failed 1x: RuntimeError: out of memory" in out
    found = json.loads((tmp_path / "s.json").read_text())
    assert list(found["methods"]) == ["target"]
    assert found["headline"] == {}
    assert "speculative" not in out
    assert found["methods"]["target"]["items"] == 4


def test_all_questions_failed(summary: Main, tmp_path: Path) -> None:
    made = [{"question_id": i, "subject": "s", "error": "RuntimeError: no"} for i in range(3)]
    plot = tmp_path / "p.png"
    words = ("--input", save(tmp_path / "r.json", made), "--output", tmp_path / "s.json", "--plot", plot)
    code, out, _ = summary("mmlu", *words)
    assert code == 0
    assert "3 items, 3 failed" in out
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["methods"], found["headline"], found["errors"]) == ({}, {}, 3)
    assert png_size(plot)


def test_unfinished_thoughts_are_counted_and_shown(summary: Main, tmp_path: Path) -> None:
    made = entries("mmlu", 5, methods=("target", "speculative"))
    for entry in made:
        entry["target_only"]["output_text"] = "<think>\nNot B.\n</think>\n\nA"
        entry["speculative"]["output_text"] = "<think>\nNot B.\n</think>\n\nA"
    made[1]["target_only"]["output_text"] = "<think>\nThe answer is A"
    made[2]["target_only"] |= {"output_text": "The answer is A", "prompt_opens_thought": "<think>"}
    code, out, _ = summary("mmlu", "--input", save(tmp_path / "r.json", made), "--output", tmp_path / "s.json")
    assert code == 0
    found = json.loads((tmp_path / "s.json").read_text())["methods"]
    assert (found["target"]["unfinished_thoughts"], found["speculative"]["unfinished_thoughts"]) == (2, 0)
    assert found["target"]["quality"]["correct"]["value"] == pytest.approx(3 / 5)
    note = "2 of 5 answers end inside a thought and count as no answer: give a larger --gen_len, or --thinking off if"
    assert f"target: {note}" in out
    assert out.count("inside a thought") == 1


def test_partial_journal(summary: Main, tmp_path: Path) -> None:
    journal = save_journal(tmp_path / "r.json.partial.jsonl", entries("mmlu", 6))
    code, out, _ = summary("mmlu", "--input", journal, "--output", tmp_path / "s.json")
    assert code == 0
    assert "PARTIAL" in out
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["partial"], found["items"], found["run"]["settings"]) == (True, 6, {"gamma": 4})
    save_journal(tmp_path / "r.json.1.partial.jsonl", entries("mmlu", 8)[6:], first=6)  # another process's questions
    for path in (journal, tmp_path / "r.json.1.partial.jsonl"):
        assert summary("mmlu", "--input", path, "--output", tmp_path / "s.json")[0] == 0
        assert json.loads((tmp_path / "s.json").read_text())["items"] == 8


def test_folders_of_output_and_plot_are_created(summary: Main, tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", entries("mmlu", 3))
    output, plot = tmp_path / "new" / "folder" / "s.json", tmp_path / "plots" / "p.png"
    code, _, err = summary("mmlu", "--input", path, "--output", output, "--plot", plot)
    assert code == 0
    assert err.splitlines() == [f"created the folder {output.parent}", f"created the folder {plot.parent}"]
    assert output.is_file()
    assert png_size(plot)


def test_same_input_gives_the_same_summary(summary: Main, tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", entries("mmlu", 9))
    for name in ("a", "b"):
        assert summary("mmlu", "--input", path, "--output", tmp_path / name)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_spec_bench_answers(summary: Main, tmp_path: Path) -> None:
    made = entries("specbench", 6)
    made[0] = {"question_id": 0, "category": "qa", "prompt_text": ["?"], "error": "RuntimeError: no"}
    path, answers = save(tmp_path / "r.jsonl", made, "specbench"), tmp_path / "answers.jsonl"
    words = ("--input", path, "--output", tmp_path / "s.json", "--spec-bench-answers", answers)
    code, out, err = summary("specbench", *words)
    assert (code, err) == (0, "")
    assert "multi-turn" in out
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [1, 2, 3, 4, 5]
    keys = {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    for line, entry in zip(lines, made[1:], strict=True):
        [choice] = line["choices"]
        turns = entry["speculative"]["turns"]
        assert set(line) == keys
        assert choice["index"] == 0
        assert choice["turns"] == [turn["output_text"] for turn in turns]
        assert choice["new_tokens"] == [turn["tokens_generated"] for turn in turns]
        assert choice["decoding_steps"] == [turn["spec_target_model_calls_reported"] for turn in turns]
        assert choice["wall_time"] == pytest.approx([turn["seconds"] + turn["prefill_seconds"] for turn in turns])
        assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
        assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
    assert len({line["answer_id"] for line in lines}) == 5
    baseline = [json.loads(line) for line in (tmp_path / "answers-baseline.jsonl").read_text().splitlines()]
    assert [line["model_id"] for line in baseline] == ["pdevis-target"] * 5
    for line in baseline:
        [choice] = line["choices"]
        assert choice["accept_lengths"] == [1] * sum(choice["new_tokens"])


def test_answers_need_speculative_answers(summary: Main, tmp_path: Path) -> None:
    path = save(tmp_path / "r.jsonl", entries("specbench", 2, methods=("target",)), "specbench")
    words = ("--input", path, "--output", tmp_path / "s.json", "--spec-bench-answers", tmp_path / "a.jsonl")
    code, _, err = summary("specbench", *words)
    assert code == 2
    assert "has no speculative answers" in err
    assert not (tmp_path / "a-baseline.jsonl").exists()


def mistakes(folder: Path) -> dict[str, tuple[list[Any], str]]:
    good = save(folder / "good.json", entries("mmlu", 2))
    (folder / "broken.json").write_text('[\n{"question_id": 1,\n!\n]')
    (folder / "lines.json").write_text(json.dumps(entries("mmlu", 1)[0]) + "\n{broken\n")
    (folder / "empty.json").write_text("")
    unscored = entries("mmlu", 1)
    del unscored[0]["label"]
    output = ["--output", folder / "s.json"]
    return {
        "missing": (["--input", folder / "no.json", *output], "no.json"),
        "folder as input": (["--input", folder, *output], str(folder)),
        "broken array": (["--input", folder / "broken.json", *output], "line 3"),
        "broken line": (["--input", folder / "lines.json", *output], "line 2"),
        "empty": (["--input", folder / "empty.json", *output], "holds no results"),
        "other benchmark": (
            ["--input", save(folder / "s.jsonl", entries("specbench", 2), "specbench"), *output],
            "mmlu",
        ),
        "not started": (["--input", save_journal(folder / "x.partial.jsonl", []), *output], "holds no results yet"),
        "other journal": (
            ["--input", save_journal(folder / "y.partial.jsonl", entries("mmlu", 1), "wmt"), *output],
            "a run of wmt, not of mmlu",
        ),
        "not finished": (
            ["--input", save_journal(folder / "z.json.partial.jsonl", []).with_name("z.json"), *output],
            "z.json.partial.jsonl",
        ),
        "no label": (["--input", save(folder / "unscored.json", unscored), *output], "question 0: cannot be scored"),
        "folder is a file": (["--input", good, "--output", good / "s.json"], "is a file, not a folder"),
        "output is a folder": (["--input", good, "--output", folder], "is a folder"),
        "output is the input": (["--input", good, "--output", good], "overwritten"),
        "plot is the output": (["--input", good, "--output", folder / "a.png", "--plot", folder / "a.png"], "--output"),
        "plot is no PNG": (["--input", good, *output, "--plot", folder / "p.pdf"], ".png"),
        "no input": (output, "--input"),
        "mistyped flag": (["--input", good, *output, "--polt", "x.png"], "did you mean --plot"),
    }


def test_mistakes_are_one_line_and_exit_code_2(summary: Main, tmp_path: Path) -> None:
    for name, (words, expected) in mistakes(tmp_path).items():
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, out, err = summary("mmlu", *words)
        assert (code, out) == (2, ""), name
        assert len(err.splitlines()) == 1, f"{name}: {err}"
        assert expected in err, f"{name}: {err}"
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, name


@pytest.mark.parametrize("benchmark", [*BENCHMARKS, "ablation"])
def test_help(benchmark: str, summary: Main) -> None:
    code, out, _ = summary(benchmark, "--help")
    assert code == 0
    assert all(flag in out for flag in ("--input", "--output", "--plot", f"summary_{benchmark}.py"))
    assert ("--spec-bench-answers" in out) == (benchmark == "specbench")
