r"""Evaluate speculative decoding on Spec-Bench, conversations of one or more turns.

    python evaluation/specbench/evaluate_specbench.py --max-examples 3 --max-gen-len 16   # embedded model, Data/samples
    python evaluation/specbench/evaluate_specbench.py --code-path appInference.py \
        --specbench Data/Specbench_filtered.jsonl --out evaluation/specbench/qwen_specbench_results.jsonl \
        --drafter-device cuda:1 --target-device cuda:2 --gamma 6 --max-gen-len 64 --max-examples 200 \
        --target-model qwen-30b-I --drafter-model qwen-4b-I

All turns of a question are asked one after another, with the earlier ones and the method's own answers as context. OUT
(--out) has JSON lines, one entry per question with the blocks target, draft and speculative. --processor MODEL uses the
tokenizer and chat template of another model than the target; both must give the same ids for the same text.

Summarise the results with summary/specbench/summary_specbench.py --input OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.run_spec import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("specbench", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
