"""The comparison of weight formats runs, and finds float32 equal to itself."""

import runpy

import pytest

from helpers import ROOT

SCRIPT = ROOT / "evaluation" / "formats" / "evaluate_formats.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_on_a_tiny_model(main, tiny_folder, capsys):
    argv = ["--model", str(tiny_folder("llama")), "--formats", "float32,int8", "--widths", "1,3"]
    assert main([*argv, "--prompts", "2", "--length", "8", "--repeats", "2"]) == 0
    table = capsys.readouterr().out
    assert "1.000" in next(line for line in table.splitlines() if "float32" in line)
    assert "int8" in table


def test_on_texts_of_a_file(main, tiny_folder, capsys):
    file = SCRIPT.parents[2] / "Data" / "samples" / "specbench.jsonl"
    argv = ["--model", str(tiny_folder("llama")), "--formats", "float32,bfloat16", "--widths", "2"]
    assert main([*argv, "--specbench", str(file), "--prompts", "3", "--length", "20", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "1.000" in next(line for line in rows if "float32" in line)
    assert "1.000" not in next(line for line in rows if "bfloat16" in line)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--formats", "fp4"], ["'fp4'", "packed"]),
        (["--widths", "1,x"], ["'1,x'"]),
        (["--repeats", "0"], ["0"]),
        (["--model", "smollm2-135n"], ["smollm2-135n", "smollm2-135m"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert said.count("\n") == 1
