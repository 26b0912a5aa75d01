r"""Evaluate speculative decoding on MATH competition problems.

    python evaluation/math/evaluate_math.py --k 3 --gen_len 16   # the embedded model, on Data/samples/math.json
    python evaluation/math/evaluate_math.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/math.json --code_path appInference.py --k 200 --gen_len 512 --gamma 6 \
        --target_model qwen-8b --drafter_model qwen-0.6b --output evaluation/math/qwen_math_results.json

Summarise the results with summary/math/summary_math.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.run_spec import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("math", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
