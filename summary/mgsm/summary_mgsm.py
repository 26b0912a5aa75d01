"""Summarise the MGSM results of evaluate_mgsm.py: a table, a JSON file, a plot.

    python summary/mgsm/summary_mgsm.py --input results/mgsm.json --output results/mgsm_summary.json
    python summary/mgsm/summary_mgsm.py --input … --output … --plot results/mgsm.png

Reports speed, acceptance and accuracy, overall and per language.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "mgsm")


if __name__ == "__main__":
    sys.exit(main())
