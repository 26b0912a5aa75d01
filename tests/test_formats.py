"""The comparison of weight formats runs, and finds float32 equal to itself."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "evaluation" / "formats" / "evaluate_formats.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_on_a_tiny_model(main, tiny_folder, capsys):
    argv = ["--model", str(tiny_folder("llama")), "--formats", "float32,int8", "--widths", "1,3"]
    assert main([*argv, "--prompts", "2", "--length", "8", "--repeats", "2"]) == 0
    table = capsys.readouterr().out
    assert "1.000" in next(line for line in table.splitlines() if "float32" in line)
    assert "int8" in table


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
