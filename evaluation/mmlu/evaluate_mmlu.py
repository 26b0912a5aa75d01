r"""Evaluate speculative decoding on MMLU multiple-choice questions.

    python evaluation/mmlu/evaluate_mmlu.py --k 3 --gen_len 16   # the embedded model, on Data/samples/mmlu.json
    python evaluation/mmlu/evaluate_mmlu.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/mmlu.json --code_path appInference.py --k 200 --gen_len 16 --gamma 6 \
        --target_model qwen-8b --drafter_model qwen-0.6b --output evaluation/mmlu/qwen_mmlu_results.json

Summarise the results with summary/mmlu/summary_mmlu.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.run_spec import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("mmlu", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
