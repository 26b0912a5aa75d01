"""Measure everything that concerns a GPU in one run of less than nine minutes, without downloads.

    python evaluation/gpu/evaluate_gpu.py --output results/gpu.json              # also: make gpu
    python evaluation/gpu/evaluate_gpu.py --output results/gpu.json --resume     # what is missing or failed
    python evaluation/gpu/evaluate_gpu.py --output draft.json --parts drafter    # some parts only
    python summary/gpu/summary_gpu.py --input results/gpu.json --output results/gpu_summary.json --plot results/gpu.png

Models have the published dimensions of catalog models and random weights (`random:KEY`). The parts, in this order: copy
bandwidth; exactness of greedy text over 20 prompts; draft steps of four drafters (eager, in graphs, static schedules of
1.5 and 1.7 times smaller depth) as share of the floor, which is bytes of weights over bandwidth; forwards of two
targets over 1 to 16 tokens and their plain decoding; end-to-end speed of two pairs at drawn (SYNTHETIC) acceptance; on
several GPUs the drafter beside the target, and lanes; the embedded model against the CPU, and with drafting ahead; the
tests in tests/test_cuda.py; two of the drafters under transformers with its static cache.

OUTPUT is saved after each part, so that a run that is killed keeps what it has. A part that fails is reported in it,
and the others go on.

Exit code: 0, or 1 if a part failed, 2 for a mistake in the flags, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import bounded_float, comma_list

DEFAULT_BUDGET = 400.0


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the results (JSON)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="measure the parts that OUTPUT lacks")
    existing.add_argument("--overwrite", action="store_true", help="start over and replace OUTPUT")
    parser.add_argument("--device", metavar="DEV", help="cuda:0, cpu (default: cuda if there is one, else cpu)")
    parser.add_argument("--parts", type=comma_list(str), metavar="LIST", help="beginnings of names (default: all)")
    text = "begin no part after this many seconds (default: %(default)g)"
    parser.add_argument("--budget", type=bounded_float(), default=DEFAULT_BUDGET, metavar="S", help=text)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and tokens, to try the script out")
    return parser


def run(args: argparse.Namespace) -> int:
    from pdevis.benchmarks.gpu.gpu_run import run_gpu  # imports torch, which --help does not need

    return run_gpu(args, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
