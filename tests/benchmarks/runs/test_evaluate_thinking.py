"""A model that thinks as Qwen3 does, through all benchmarks: thoughts are kept apart, counted, and never scored."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.evaluation import Scripts, load
from helpers.tiny_models import ANSWER, THOUGHT
from pdevis.benchmarks.runs.result_files import method_keys
from pdevis.benchmarks.tasks import BENCHMARKS

TEXT = f"<think>{THOUGHT}</think>\n\n{ANSWER}"
TOKENS = len(THOUGHT) + 2  # with the tags


class Run:
    """Results and summary of one run, with what the evaluate script wrote on stderr."""

    def __init__(self, scripts: Scripts, benchmark: str, folder: Path, *flags: object) -> None:
        is_specbench = benchmark == "specbench"
        output, summary = folder / "results.json", folder / "summary.json"
        limits = ("--max_examples", 2, "--out", output) if is_specbench else ("--k", 2, "--output", output)
        code, self.err = scripts(benchmark, *limits, *flags, "--no-progress")
        assert code == 0
        main = runpy.run_path(str(ROOT / "summary" / benchmark / f"summary_{benchmark}.py"))["main"]
        assert main(["--input", str(output), "--output", str(summary)]) == 0
        self.table = scripts.capsys.readouterr().out
        self.entries = load(output)
        self.methods: dict[str, Any] = json.loads(summary.read_text())["methods"]
        keys = method_keys(benchmark).values()
        blocks = [entry[key] for entry in self.entries for key in keys]
        self.answers = [answer for block in blocks for answer in block.get("turns") or [block]]


@pytest.fixture
def scripts(thinking_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    return Scripts(thinking_folder, thinking_folder, capsys)


def run(scripts: Scripts, benchmark: str, name: str, *flags: object) -> Run:
    folder = Path(name)
    folder.mkdir()
    return Run(scripts, benchmark, folder, *flags)


def limit(benchmark: str, tokens: int) -> tuple[str, int]:
    return ("--max_gen_len" if benchmark == "specbench" else "--gen_len", tokens)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_thoughts_are_apart_and_never_scored(scripts: Scripts, benchmark: str) -> None:
    thinking = run(scripts, benchmark, "auto", *limit(benchmark, 32))
    without = run(scripts, benchmark, "off", *limit(benchmark, 32), "--thinking", "off")
    for answer in thinking.answers:
        assert answer["output_text"] == TEXT
        assert (answer["reasoning_text"], answer["reasoning_tokens"]) == (THOUGHT, TOKENS)
        assert answer["answer_text"] == ANSWER
    for answer in without.answers:
        assert answer["output_text"] == ANSWER
        assert not {"reasoning_text", "reasoning_tokens", "answer_text", "prompt_opens_thought"} & answer.keys()
    assert thinking.methods.keys() == without.methods.keys() == {"target", "drafter", "speculative"}
    for name, method in thinking.methods.items():
        other = without.methods[name]
        assert (method.get("quality"), method.get("corpus")) == (other.get("quality"), other.get("corpus"))
        assert method["reasoning_tokens"] == TOKENS * method["answers"]
        assert "reasoning_tokens" not in other
        assert f"{name}: {TOKENS * method['answers']} of {method['tokens']} tokens are reasoning" in thinking.table
    assert "inside a thought" not in thinking.err + thinking.table + without.err + without.table


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_limit_inside_the_thought_is_reported(scripts: Scripts, benchmark: str) -> None:
    short = run(scripts, benchmark, "short", *limit(benchmark, 2))
    for answer in short.answers:
        assert (answer["reasoning_text"], answer["reasoning_tokens"], answer["answer_text"]) == (THOUGHT[0], 2, "")
        assert answer["stop_reason"] == "length"
    flag = limit(benchmark, 0)[0]
    for name, method in short.methods.items():
        count = method["answers"]
        assert method["unfinished_thoughts"] == count
        note = (
            f"{name}: {count} of {count} answers end inside a thought and count as no answer: give a larger {flag}, or "
        )
        assert f"{note}--thinking off" in short.err
        assert f"{note}--thinking off" in short.table
        for metric in ("correct", "correct_flexible", "prompt_loose", "chrf"):
            assert method.get("quality", {}).get(metric, {"value": 0})["value"] == 0


def test_the_next_turn_has_no_thoughts(scripts: Scripts, thinking_folder: Path) -> None:
    thinking = run(scripts, "specbench", "auto", *limit("specbench", 32))
    without = run(scripts, "specbench", "off", *limit("specbench", 32), "--thinking", "off")
    lengths = [[answer["prompt_tokens"] for answer in each.answers] for each in (thinking, without)]
    empty_thought = 4  # of the prompts whose thinking is off: <think>, an empty line, </think>, an empty line
    assert lengths[0] == [length - empty_thought for length in lengths[1]]
    assert any(len(entry["target"]["turns"]) > 1 for entry in thinking.entries)


def test_a_thought_that_the_prompt_opens(opening_folder: Path, scripts: Scripts) -> None:
    opened = Scripts(opening_folder, opening_folder, scripts.capsys)
    for answer in run(opened, "mmlu", "opened", "--gen_len", 32).answers:
        assert answer["output_text"] == TEXT.removeprefix("<think>")
        assert (answer["prompt_opens_thought"], answer["reasoning_text"]) == ("<think>", THOUGHT)
        assert (answer["reasoning_tokens"], answer["answer_text"]) == (TOKENS - 1, ANSWER)
