"""Summarise the MGSM results of evaluate_mgsm.py: a table, a JSON file, a plot.

    python summary/mgsm/summary_mgsm.py --input results/mgsm.json --output results/mgsm_summary.json
    python summary/mgsm/summary_mgsm.py --input … --output … --plot results/mgsm.png
    python summary/mgsm/summary_mgsm.py --input results/mgsm.json.partial.jsonl --output …  # unfinished

Reports speed, acceptance and accuracy, overall and per language.
Rates are ratios of sums; every figure has a 95 % bootstrap interval over questions. Methods that were not run are
left out, questions that failed are counted and not averaged in. No model is loaded.
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
