"""The benchmark behind the simulator's flags runs, on tiny models; its numbers are only looked at for their form."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers import ROOT
from pdevis.devices import available_cores
from pdevis.simulate.__main__ import build_parser

SCRIPT = ROOT / "tools" / "bench_costs.py"


def bench(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, argv)], capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_what_it_prints_are_flags_of_the_simulator(tiny_folder):
    model = tiny_folder("llama")
    for argv, names in (
        ((), ["draft_ms", "attention_share", "head_share", "repeated_share", "contention", "link_us"]),
        (("--target", model, "--target_precision", "float32"), ["draft_ms", "target_ms", "target_contention"]),
    ):
        ran = bench("--model", model, "--precision", "float32", "--repeats", 3, *argv)
        assert ran.returncode == 0, ran.stderr
        *_, flags = ran.stdout.splitlines()
        args = build_parser().parse_args(["--trace", "any.jsonl", *flags.split()])
        assert all(getattr(args, name) is not None for name in names)
        assert args.draft_ms > 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--model", "smollm2-135m", "--precision", "float9"], "float9"),
    ],
)
def test_wrong_flags(argv, said):
    ran = bench(*argv)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
