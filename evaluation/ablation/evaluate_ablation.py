r"""Measure a grid of drafting settings on one benchmark: modes, checks, thresholds, windows and γ, without reloading.

    python evaluation/ablation/evaluate_ablation.py --k 3 --gen_len 16   # the embedded model, on Data/samples/mmlu.json
    python evaluation/ablation/evaluate_ablation.py --benchmark specbench --dataset Data/Specbench_filtered.jsonl \
        --modes skip,parallel --checks planned,inline --thresholds 0.8,0.9,0.95 --windows 2,3 --gammas 4,6 --k 40 \
        --gen_len 128 --target_model qwen-8b --drafter_model qwen-0.6b --output results/ablation_qwen.json
    python evaluation/ablation/evaluate_ablation.py … --resume           # continue after Ctrl-C, a crash or a reboot

Each question is answered by the target alone, then under every cell of the grid, one after another. `exact`, the plain
drafter, is always in the grid, for each γ: draft speedup and retention are ratios to it. The flags --attention_window,
--mlp_window, --keep_first, --keep_last and --calibrate apply to all cells.

OUTPUT is one JSON object: settings, "target", and "cells", each with its setting, its sums (drafted, accepted,
draft_steps, tokens, rounds, and seconds), its means per draft step (mean_skip, serial_depth), how many answers are
the target's, and the same numbers of each question. OUTPUT.partial.jsonl and OUTPUT.meta.json as in the other scripts.

Exit code: 0, or 1 if a unit failed (the others are kept), 2 for a mistake in the flags, 130 after Ctrl-C.
Summarise the results with summary/ablation/summary_ablation.py --input OUTPUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pdevis.benchmarks.ablation.ablation_run import ablation_parser, run_ablation
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return ablation_parser(__doc__, Path(__file__).resolve().parents[2])


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_ablation, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
