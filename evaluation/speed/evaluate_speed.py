"""Time the decoders of pdevis, transformers and llama.cpp on the same prompts, interleaved in one process.

    python evaluation/speed/evaluate_speed.py                                  # embedded model, drafting for itself
    python evaluation/speed/evaluate_speed.py --modes exact,skip,parallel --thresholds 0.9,0.98 --gammas 2,4,auto
    python evaluation/speed/evaluate_speed.py --target_model FOLDER --drafter_model FOLDER --output speed.json
    python evaluation/speed/evaluate_speed.py --target_model FOLDER --drafter_model FOLDER --gguf TARGET.gguf
    python evaluation/speed/evaluate_speed.py --draft_devices "cpu:0;cpu:0,cpu:1" --modes exact,skip,parallel
    python evaluation/speed/evaluate_speed.py --draft_device cpu:0 --target_device cpu:1 --overlap
    python evaluation/speed/evaluate_speed.py --draft_mode exact --also "--draft_mode skip --threshold 0.95"
    python evaluation/speed/evaluate_speed.py --specbench Data/samples/specbench.jsonl --categories math,coding

Greedy, 64 tokens after each prompt: built-in prompts, or the first turns of SpecBench questions. Decoders: the target
alone, speculative decoding in each mode, transformers' generate, assisted generation (its defaults, and fixed γ) and
prompt lookup, llama.cpp if llama-cpp-python is installed. Decoders that cannot run are listed with the reason.

Prints speeds (prompt included) with 95 % bootstrap intervals, ratios to plain decoding and to transformers' generate,
the parts of a round (acceptance, cost of a draft step, time of draft, verify and rest, the analytic speedup and the
fraction of it that is reached), the gains of lanes on several devices and of drafting ahead, a draft step against the
same drafter under transformers, peak memory, and whether all greedy outputs are equal (on CPU the exit code is 1 if
one that must be is not).

--output keeps every measurement, prompt by prompt; --resume continues a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.benchmarks.speed.speed_run import run_speed
from pdevis.benchmarks.speed.speed_spec import speed_parser
from pdevis.cli import Parser, run_main


def build_parser() -> Parser:
    return speed_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run_speed, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
