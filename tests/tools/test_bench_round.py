"""tools/bench_round.py runs on a tiny model; the times that it measures are not checked."""

from __future__ import annotations

import runpy

import pytest

from helpers import ROOT

SCRIPT = ROOT / "tools" / "bench_round.py"


@pytest.fixture
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def test_every_part_is_in_the_table(main, tiny_folder, capsys):
    argv = ["--model", str(tiny_folder("llama")), "--device", "cpu", "--formats", "float32", "--seconds", "0.001"]
    assert main([*argv, "--target", "float32", "--drafter", "float32"]) == 0
    table = capsys.readouterr().out
    parts = ("forward", "attention", "MLP", "output head", "draft step, exact", "draft step, parallel")
    products = ("float32: qkv 128 x 64", "float32: down 64 x 96", "greedy verify, γ=4")
    assert all(name in table for name in (*parts, *products))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seconds", "0"], ["--seconds", "> 0"]),
        (["--model", "no/such/folder"], ["no/such/folder"]),
        (["--formats", "float9"], ["float9", "packed"]),
    ],
)
def test_wrong_flags(main, argv, words, capsys):
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    assert code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
    assert message.count("\n") == 1
