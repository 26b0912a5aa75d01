"""Summarise the measurements of evaluate_speed.py again: tables, a JSON file, a plot.

    python summary/speed/summary_speed.py --input speed.json --output speed_summary.json --plot speed.png
    python summary/speed/summary_speed.py --input cpu.json gpu.json --output both.json --plot both.png

The plot shows, for each input, tokens/s with 95 % bootstrap intervals and the ratio to transformers' generate (or to
plain decoding if that was left out), and how the time of a round is divided.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.speed.speed_report import run_speed_summary
from pdevis.benchmarks.summary.summary_script import summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__, several_inputs=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_speed_summary, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
