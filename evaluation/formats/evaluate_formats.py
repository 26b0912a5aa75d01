"""Compare weight formats of one model on CPU: how close to float32, and how fast for k tokens at once.

    python evaluation/formats/evaluate_formats.py                                    # the embedded model
    python evaluation/formats/evaluate_formats.py --model FOLDER --formats packed,int8 --widths 1,2,5,9
    python evaluation/formats/evaluate_formats.py --model FOLDER --formats int8 --specbench FILE --length 192

Prints a table: agreement (share of positions with float32's argmax, on text that float32 wrote or on the questions of a
SpecBench file), mean KL divergence from float32 in nats, and the median milliseconds of a forward of k tokens behind a
context of 64, formats in turn.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pdevis.cli import DEFAULT_TARGET, Parser, run_main

FORMATS = ("float32", "packed", "bfloat16", "int8 without rotation", "int8")


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_TARGET, help="catalog key, hub id or folder (default: %(default)s)")
    parser.add_argument("--formats", default=",".join(FORMATS), metavar="LIST", help="default: %(default)s")
    parser.add_argument("--widths", default="1,2,3,5,8", metavar="LIST", help="tokens at once (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=10, metavar="N", help="built-in prompts (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, metavar="N", help="tokens behind each (default: %(default)s)")
    parser.add_argument("--specbench", type=Path, metavar="FILE", help="read its questions, --length tokens of each")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timings of each (default: %(default)s)")
    return parser


def run(args: Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from pdevis.benchmarks.speed.speed_prompts import builtin_prompts, specbench_prompts
    from pdevis.benchmarks.speed.weight_formats import compare_formats
    from pdevis.loading.checkpoint import find_source

    formats = args.formats.split(",")
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--formats: {name!r} must be one of {', '.join(FORMATS)}")
    if not all(word.isdigit() and 0 < int(word) <= 32 for word in args.widths.split(",")):
        raise ValueError(f"--widths: {args.widths!r} must be integers from 1 to 32, separated by commas")
    widths = [int(word) for word in args.widths.split(",")]
    for flag in ("prompts", "length", "repeats"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag}: {getattr(args, flag)} must be an integer >= 1")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.specbench:
        read = [prompt.text for prompt in specbench_prompts(args.specbench, None, args.prompts)]
    else:
        builtin_prompts(args.prompts)
        read = None
    source = find_source(args.model, say)
    rows = compare_formats(source, formats, args.prompts, args.length, widths, args.repeats, say, read)
    table = Table("format", "agreement", "KL", *(f"k={k} ms" for k in widths))
    for row in rows:
        times = [f"{row.milliseconds(k):.1f}" for k in widths]
        table.add_row(row.name, f"{row.agreement:.3f}", f"{row.divergence:.4f}", *times)
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
