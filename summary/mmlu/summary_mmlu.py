"""Summarise the MMLU results of evaluate_mmlu.py: a table, a JSON file, a plot.

    python summary/mmlu/summary_mmlu.py --input results/mmlu.json --output results/mmlu_summary.json
    python summary/mmlu/summary_mmlu.py --input … --output … --plot results/mmlu.png

Reports speed, acceptance and accuracy: per subject, macro (mean over subjects) and micro (mean over questions).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "mmlu")


if __name__ == "__main__":
    sys.exit(main())
