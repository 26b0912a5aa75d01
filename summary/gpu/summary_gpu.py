"""Show the measurements of evaluate_gpu.py again: tables, a JSON file, a plot.

    python summary/gpu/summary_gpu.py --input results/gpu.json --output results/gpu_summary.json --plot results/gpu.png

The plot shows milliseconds per draft token with the least that the bandwidth allows, and the speed of pairs over plain
decoding, at drawn acceptance, by draft length.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.gpu.gpu_report import run_gpu_summary
from pdevis.benchmarks.summary.summary_script import summary_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return summary_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_gpu_summary, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
