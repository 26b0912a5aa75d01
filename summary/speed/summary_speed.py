"""Summarise the measurements of evaluate_speed.py anew: tables, a JSON file, a plot. No model is loaded.

    python summary/speed/summary_speed.py --input speed.json --output speed_summary.json --plot speed.png
    python summary/speed/summary_speed.py --input cpu.json gpu.json --output both.json --plot both.png
    python summary/speed/summary_speed.py --input speed.json.partial.jsonl --output so_far.json     # unfinished

The plot shows, for each input, tokens/s with 95 % bootstrap intervals and the ratio to transformers' generate (or to
plain decoding where that was left out), and where the time of a round goes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.speed.speed_summary import run_speed_summary
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--input", type=Path, required=True, nargs="+", metavar="FILE", help="what evaluate_speed.py wrote, or journals"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the summary goes (JSON)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures into a PNG file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_speed_summary, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
