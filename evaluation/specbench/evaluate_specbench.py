r"""Evaluate speculative decoding on Spec-Bench, conversations of one or more turns.

    python evaluation/specbench/evaluate_specbench.py --max-examples 3 --max-gen-len 16   # embedded model, Data/samples
    python evaluation/specbench/evaluate_specbench.py --code-path appInference.py \
        --specbench Data/Specbench_filtered.jsonl --out evaluation/specbench/qwen_specbench_results.jsonl \
        --drafter-device cuda:1 --target-device cuda:2 --gamma 6 --max-gen-len 64 --max-examples 200 \
        --target-model qwen-30b-I --drafter-model qwen-4b-I
    python evaluation/specbench/evaluate_specbench.py … --resume                     # go on after Ctrl-C or a crash
    accelerate launch --num_processes 4 evaluation/specbench/evaluate_specbench.py …       # shared out over four GPUs

All turns of a question are asked one after another, the earlier ones and the method's own answers in the context.
--processor MODEL takes the tokenizer (and its chat template) of another model than the target; both must give the same
ids to the same text. A finished question stands in OUT.partial.jsonl at once; OUT itself (JSON lines, one entry per
question with the blocks target, draft and speculative) and OUT.meta.json (settings, versions, devices, times) are
written at the end. In greedy runs (--temperature 0, the default) the speculative token ids are compared with the
target's. What already exists is never replaced without --overwrite.

accelerate: without several GPUs it takes --multi_gpu as well to start several processes (on the CPU too); every process
takes its own GPU where no device flag is given, or one of a comma list such as --target_device cuda:0,cuda:1.

Exit code: 0, or 1 where a question failed (the others are there), 2 for a mistake in the flags, 130 after Ctrl-C.
Next: summary/specbench/summary_specbench.py --input OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.evaluation_flags import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("specbench", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
