r"""Evaluate speculative decoding on WMT14 German to English translation.

    python evaluation/wmt/evaluate_wmt.py --k 3 --gen_len 16   # the embedded model, on Data/samples/wmt.json
    python evaluation/wmt/evaluate_wmt.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/wmt.json --code_path appInference.py --k 200 --gen_len 64 --gamma 6 \
        --target_model llama-70b --drafter_model llama-3b --output evaluation/wmt/llama_wmt_results.json

Summarise the results with summary/wmt/summary_wmt.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.run_spec import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("wmt", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
