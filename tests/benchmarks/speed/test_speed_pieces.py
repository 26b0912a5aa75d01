"""The benchmark of the pieces runs, on a tiny model; what it measures is not looked at."""

import runpy

import pytest

from helpers import ROOT

SCRIPT = ROOT / "tools" / "bench_pieces.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_every_piece_is_in_the_table(main, tiny_folder, capsys):
    argv = ["--model", str(tiny_folder("llama")), "--device", "cpu", "--formats", "float32", "--seconds", "0.001"]
    assert main([*argv, "--target", "float32", "--drafter", "float32"]) == 0
    shown = capsys.readouterr().out
    pieces = ("forward", "attention", "MLP", "output head", "draft step, exact", "draft step, parallel")
    products = ("float32: qkv 128 x 64", "float32: down 64 x 96", "greedy verify, γ=4")
    assert all(name in shown for name in (*pieces, *products))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seconds", "0"], ["--seconds", "above 0"]),
        (["--model", "no/such/folder"], ["no/such/folder"]),
        (["--formats", "float9"], ["float9", "packed"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert said.count("\n") == 1
