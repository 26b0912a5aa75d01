"""Time this project's decoders and transformers' `generate` on the same prompts, in one process and in turn.

    python evaluation/speed/evaluate_speed.py                                  # embedded model, drafting for itself
    python evaluation/speed/evaluate_speed.py --modes exact,skip,parallel --thresholds 0.9,0.98 --gammas 2,4
    python evaluation/speed/evaluate_speed.py --target_model FOLDER --drafter_model FOLDER --output speed.json

Greedy, 64 tokens behind each of the first --prompts built-in prompts. Prints a table: tokens/s over total time (prompt
included), the ratio to plain decoding of the same target and to transformers' `generate` with a 95 % bootstrap
interval, acceptance, and how many answers have exactly the ids of plain decoding. --output keeps every measurement.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from pdevis.cli import Parser, add_draft_flags, add_model_flags, pair_arguments, parse_value, run_main
from pdevis.records import DecodeConfig, DraftConfig


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add_model_flags(parser)
    add_draft_flags(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--gammas", metavar="LIST", default="4", help="draft tokens per round (default: 4)")
    group.add_argument("--modes", metavar="LIST", help="drafting modes (default: --draft_mode)")
    group.add_argument("--thresholds", metavar="LIST", help="of skip and parallel (default: --threshold)")
    group.add_argument("--checks", metavar="LIST", help="inline, planned (default: --check)")
    group.add_argument("--prompts", type=int, default=10, metavar="N", help="built-in prompts to use (default: 10)")
    group.add_argument("--length", type=int, default=64, metavar="N", help="new tokens a prompt (default: 64)")
    group.add_argument("--no_transformers", action="store_true", help="leave out transformers' generate")
    group.add_argument("--output", metavar="FILE", help="write all measurements as JSON")
    return parser


def settings(args: Namespace) -> tuple[list[DraftConfig], list[int]]:
    """The drafting settings and γ to measure. Raises ValueError for a wrong word in a list."""
    base = pair_arguments(args)["draft"]

    def words(flag: str, text: str | None, name: str, convert: type, config: type = DraftConfig) -> list:
        if text is None:
            return [getattr(base, name)]
        try:
            return [parse_value(config, name, convert, word.strip()) for word in text.split(",")]
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None

    gammas = words("--gammas", args.gammas, "gamma", int, DecodeConfig)
    grid = product(
        words("--modes", args.modes, "mode", str),
        words("--checks", args.checks, "check", str),
        words("--thresholds", args.thresholds, "threshold", float),
    )
    drafts = []
    for mode, check, threshold in grid:
        plain = mode in ("exact", "auto")  # neither a check nor a threshold matters
        draft = replace(base, mode=mode) if plain else replace(base, mode=mode, check=check, threshold=threshold)
        if draft not in drafts:
            drafts.append(draft)
    return drafts, gammas


def run(args: Namespace) -> int:
    from pdevis.benchmarks.speed import PROMPTS
    from pdevis.benchmarks.speed_run import run_speed

    for flag in ("prompts", "length"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag}: {getattr(args, flag)} must be a whole number of at least 1")
    if args.prompts > len(PROMPTS):
        raise ValueError(f"--prompts: {args.prompts} must be at most {len(PROMPTS)}, the built-in prompts")
    return run_speed(args, *settings(args))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
