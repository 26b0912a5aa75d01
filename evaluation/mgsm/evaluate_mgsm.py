r"""Evaluate speculative decoding on MGSM grade-school mathematics in several languages.

    python evaluation/mgsm/evaluate_mgsm.py --k 3 --gen_len 16   # the embedded model, on Data/samples/mgsm.json
    python evaluation/mgsm/evaluate_mgsm.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/mgsm.json --code_path appInference.py --k 200 --gen_len 256 --gamma 6 \
        --target_model qwen-8b --drafter_model qwen-0.6b --output evaluation/mgsm/qwen_mgsm_results.json
    python evaluation/mgsm/evaluate_mgsm.py … --resume                     # go on after Ctrl-C, a crash or a reboot
    accelerate launch --num_processes 4 evaluation/mgsm/evaluate_mgsm.py …       # shared out over four GPUs

Each item is answered by every one of --methods with the same prompt, limit and settings, after a warm-up. A finished
item stands in OUTPUT.partial.jsonl at once; OUTPUT itself (a JSON array, one entry per item) and OUTPUT.meta.json
(settings, versions, devices, times) are written at the end. In greedy runs (--temperature 0, the default) the
speculative token ids are compared with the target's. What already exists is never replaced without --overwrite.

accelerate: without several GPUs it takes --multi_gpu as well to start several processes (on the CPU too); every process
takes its own GPU where no device flag is given, or one of a comma list such as --target_device cuda:0,cuda:1.

Exit code: 0, or 1 where an item failed (the others are there), 2 for a mistake in the flags, 130 after Ctrl-C.
Next: summary/mgsm/summary_mgsm.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.evaluation_flags import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("mgsm", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
