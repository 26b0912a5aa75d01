"""Summarise the SpecBench results of evaluate_specbench.py: a table, a JSON file, a plot.

    python summary/specbench/summary_specbench.py --input results/specbench.jsonl --output results/spec_summary.json
    python summary/specbench/summary_specbench.py --input … --output … --plot results/spec.png
    python summary/specbench/summary_specbench.py --input … --output … --spec-bench-answers answers.jsonl

Reports speed over the target and mean accepted length, per category and for conversations of several turns.
--spec-bench-answers writes the answers in Spec-Bench's own format, for its own scorer: the speculative ones to FILE,
the target's to FILE with "-baseline" before its ending.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    parser = summary_parser(__doc__)
    parser.add_argument(
        "--spec-bench-answers",
        type=Path,
        metavar="FILE",
        help="also write the answers in Spec-Bench's own format: FILE, and FILE with -baseline for the target's",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "specbench")


if __name__ == "__main__":
    sys.exit(main())
