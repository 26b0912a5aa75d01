"""Summarise the IFEval results of evaluate_ifeval.py: a table, a JSON file, a plot.

    python summary/ifeval/summary_ifeval.py --input results/ifeval.json --output results/ifeval_summary.json
    python summary/ifeval/summary_ifeval.py --input … --output … --plot results/ifeval.png

Reports speed, acceptance and instruction following: strict and loose, per prompt and per instruction.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "ifeval")


if __name__ == "__main__":
    sys.exit(main())
