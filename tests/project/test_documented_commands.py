"""The evaluation chapter's commands, on the samples with the embedded model: each benchmark from run to plot."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from helpers import ROOT

BENCHMARKS = ("wmt", "mgsm", "math", "ifeval", "specbench")


def script(path: str):
    return runpy.run_path(str(ROOT / path))["main"]


def documented(text: str) -> list[list[str]]:
    """The `python evaluation/…` and `python summary/…` commands of a text that name no model of their own."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    found = [shlex.split(line) for line in lines if re.match(r"python (evaluation|summary)/", line)]
    return [words[1:] for words in found if "--target_model" not in words and "--target-model" not in words]


def run_from_to(benchmark: str, folder: Path) -> dict:
    """Evaluate two samples, eight tokens each, and summarise with a plot; returns the summary."""
    lines = benchmark == "specbench"
    result, summary, plot = (folder / name for name in (f"out.json{'l' * lines}", "summary.json", "plot.png"))
    few = (
        ["--max-examples", "2", "--max-gen-len", "8", "--out"] if lines else ["--k", "2", "--gen_len", "8", "--output"]
    )
    assert script(f"evaluation/{benchmark}/evaluate_{benchmark}.py")(["--device", "cpu", *few, str(result)]) == 0
    argv = ["--input", str(result), "--output", str(summary), "--plot", str(plot)]
    assert script(f"summary/{benchmark}/summary_{benchmark}.py")(argv) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    return json.loads(summary.read_text())


def test_mmlu_from_run_to_plot(embedded_folder, tmp_path):
    summary = run_from_to("mmlu", tmp_path)
    assert (summary["items"], summary["errors"]) == (2, 0)
    assert summary["headline"]["same_as_target"]["share"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_benchmark_from_run_to_plot(embedded_folder, tmp_path, benchmark):
    summary = run_from_to(benchmark, tmp_path)
    assert (summary["items"], summary["errors"]) == (2, 0)
    assert summary["headline"]["same_as_target"]["share"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/evaluation.md"])
def test_commands_as_they_stand(embedded_folder, tmp_path, monkeypatch, document):
    """In order, in a folder of their own; commands for real data sets and several processes are left out."""
    monkeypatch.chdir(tmp_path)
    commands = [words for words in documented((ROOT / document).read_text()) if not {"--dataset"} & set(words)]
    commands = [words for words in commands if words[0].startswith(("evaluation/mmlu", "summary/mmlu"))]
    assert len(commands) >= 2
    for path, *argv in commands:
        if "--input" in argv and "partial" in argv[argv.index("--input") + 1]:
            continue
        assert script(path)(argv) == 0, (path, argv)
