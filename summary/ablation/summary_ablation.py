"""Summarise the grid of evaluate_ablation.py: a table, a JSON file, the Pareto plot.

    python summary/ablation/summary_ablation.py --input results/ablation.json --output results/ablation_summary.json
    python summary/ablation/summary_ablation.py --input … --output … --plot results/ablation.png

Per cell of the grid: draft speedup (draft tokens/s over those of `exact`) and retention (acceptance rate over that of
`exact`), both with the same γ and on the same questions; acceptance, mean skip, serial depth, speed over the target,
and the number of greedy answers that equal the target's. Cells on the frontier, for which no other cell drafts as fast
and keeps as much of the acceptance, are starred and joined in the plot.
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
