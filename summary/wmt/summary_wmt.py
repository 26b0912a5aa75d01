"""Summarise the WMT results of evaluate_wmt.py: a table, a JSON file, a plot.

    python summary/wmt/summary_wmt.py --input results/wmt.json --output results/wmt_summary.json
    python summary/wmt/summary_wmt.py --input … --output … --plot results/wmt.png

Reports speed, acceptance and translation quality: sentence scores with intervals, corpus BLEU, chrF++ and TER with
sacrebleu's signatures, and sacrebleu's paired significance test between target and speculative.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.summary.summary_script import run_summary, summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_summary, build_parser().parse_args(argv), "wmt")


if __name__ == "__main__":
    sys.exit(main())
