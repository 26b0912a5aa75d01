"""Compare weight formats of one model on CPU: how close they are to float32, and how long k tokens at once take.

    python evaluation/formats/evaluate_formats.py                                    # the embedded model
    python evaluation/formats/evaluate_formats.py --model FOLDER --formats packed,int8 --widths 1,2,5,9
    python evaluation/formats/evaluate_formats.py --model FOLDER --formats int8 --specbench FILE --length 192

Prints a table: agreement (fraction of positions with float32's argmax, on text that float32 wrote or on the questions
of a SpecBench file), mean KL divergence from float32 in nats, and the median milliseconds of a forward over k tokens
after a context of 64 tokens. Timings of the formats are interleaved.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pdevis.cli import DEFAULT_TARGET, Parser, run_main

FORMATS = "float32,packed,bfloat16,int8 without rotation,int8"


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_TARGET, help="catalog key, hub id or folder (default: %(default)s)")
    parser.add_argument("--formats", default=FORMATS, metavar="LIST", help="default: %(default)s")
    parser.add_argument("--widths", default="1,2,3,5,8", metavar="LIST", help="tokens at once (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=10, metavar="N", help="built-in prompts (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, metavar="N", help="tokens after each (default: %(default)s)")
    parser.add_argument("--specbench", type=Path, metavar="FILE", help="read its questions, --length tokens of each")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timings of each (default: %(default)s)")
    return parser


def run(args: Namespace) -> None:
    from pdevis.benchmarks.weight_formats import run_formats  # imports torch, which --help does without

    run_formats(args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
