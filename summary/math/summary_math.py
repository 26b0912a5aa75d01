"""Summarise the MATH results of evaluate_math.py: a table, a JSON file, a plot.

    python summary/math/summary_math.py --input results/math.json --output results/math_summary.json
    python summary/math/summary_math.py --input … --output … --plot results/math.png

Reports speed, acceptance and accuracy (equivalence of the answers, by math-verify).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "math")


if __name__ == "__main__":
    sys.exit(main())
