"""Summarise the grid of evaluate_ablation.py: a table, a JSON file, the Pareto plot.

    python summary/ablation/summary_ablation.py --input results/ablation.json --output results/ablation_summary.json
    python summary/ablation/summary_ablation.py --input … --output … --plot results/ablation.png
    python summary/ablation/summary_ablation.py --input results/ablation.json.partial.jsonl --output …   # unfinished

Per cell: draft speedup (draft tokens/s over those of `exact`) and retention (acceptance rate over its), both
with the same γ and on the same questions; acceptance, mean skip, serial depth, speed over the target, and how many
greedy answers equal the target's. Intervals are 95 % bootstrap intervals over questions. Cells on the frontier, where
no other drafts as fast and keeps as much, are starred and joined in the plot. No model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_grid_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_grid_summary, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
