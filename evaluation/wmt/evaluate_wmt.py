r"""Evaluate speculative decoding on WMT14 German to English translation.

    python evaluation/wmt/evaluate_wmt.py --k 3 --gen_len 16   # the embedded model, on Data/samples/wmt.json
    python evaluation/wmt/evaluate_wmt.py --draft_device cuda:0 --target_device cuda:3 \
        --dataset Data/wmt.json --code_path appInference.py --k 200 --gen_len 64 --gamma 6 \
        --target_model llama-70b --drafter_model llama-3b --output evaluation/wmt/llama_wmt_results.json
    python evaluation/wmt/evaluate_wmt.py … --resume                     # go on after Ctrl-C, a crash or a reboot
    accelerate launch --num_processes 4 evaluation/wmt/evaluate_wmt.py …       # shared out over four GPUs

Each item is answered by every one of --methods with the same prompt, limit and settings, after a warm-up. A finished
item stands in OUTPUT.partial.jsonl at once; OUTPUT itself (a JSON array, one entry per item) and OUTPUT.meta.json
(settings, versions, devices, times) are written at the end. In greedy runs (--temperature 0, the default) the
speculative token ids are compared with the target's. What already exists is never replaced without --overwrite.

accelerate: without several GPUs it takes --multi_gpu as well to start several processes (on the CPU too); every process
takes its own GPU where no device flag is given, or one of a comma list such as --target_device cuda:0,cuda:1.

Exit code: 0, or 1 where an item failed (the others are there), 2 for a mistake in the flags, 130 after Ctrl-C.
Next: summary/wmt/summary_wmt.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.runs.evaluate import run_evaluation
from pdevis.benchmarks.runs.evaluation_flags import evaluation_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return evaluation_parser("wmt", __doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_evaluation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
