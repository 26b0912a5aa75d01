r"""Evaluate speculative decoding on IFEval verifiable instructions.

    python evaluation/ifeval/evaluate_ifeval.py --k 3 --gen_len 16   # the embedded model, on Data/samples/ifeval.json
    python evaluation/ifeval/evaluate_ifeval.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/ifeval.json --code_path appInference.py --k 200 --gen_len 512 --gamma 6 \
        --target_model llama-8b --drafter_model llama-1b --output evaluation/ifeval/llama_ifeval_results.json

Summarise the results with summary/ifeval/summary_ifeval.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.run_spec import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("ifeval", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
