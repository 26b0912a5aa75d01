"""python -m pdevis.simulate.measure on tiny models; its numbers are only checked for their form."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import HANG_SECONDS, ROOT
from pdevis.devices import available_cores
from pdevis.simulate.__main__ import build_parser


def measure(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pdevis.simulate.measure", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.slow
def test_it_prints_flags_of_the_simulator(tiny_folder):
    model = tiny_folder("llama")
    for argv, names in (
        (
            (),
            [
                "draft_ms",
                "token_ms",
                "attention_share",
                "head_share",
                "repeated_share",
                "kernel_share",
                "contention",
                "link_us",
            ],
        ),
        (("--target", model, "--target_precision", "float32"), ["draft_ms", "target_ms", "target_contention"]),
    ):
        run = measure("--model", model, "--precision", "float32", "--repeats", 3, *argv)
        assert run.returncode == 0, run.stderr
        *_, flags = run.stdout.splitlines()
        args = build_parser().parse_args(["--trace", "any.jsonl", *flags.split()])
        assert all(getattr(args, name) is not None for name in names)
        assert args.draft_ms > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--model", "smollm2-135m", "--precision", "float9"], "float9"),
    ],
)
def test_wrong_flags(argv, message):
    run = measure(*argv)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
