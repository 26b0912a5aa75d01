"""Time this project's decoders beside transformers' and llama.cpp's on the same prompts, in one process and in turn.

    python evaluation/speed/evaluate_speed.py                                  # embedded model, drafting for itself
    python evaluation/speed/evaluate_speed.py --modes exact,skip,parallel --thresholds 0.9,0.98 --gammas 2,4,auto
    python evaluation/speed/evaluate_speed.py --target_model FOLDER --drafter_model FOLDER --output speed.json
    python evaluation/speed/evaluate_speed.py --target_model FOLDER --drafter_model FOLDER --gguf TARGET.gguf
    python evaluation/speed/evaluate_speed.py --draft_devices "cpu:0;cpu:0,cpu:1" --modes exact,skip,parallel
    python evaluation/speed/evaluate_speed.py --draft_device cpu:0 --target_device cpu:1 --overlap
    python evaluation/speed/evaluate_speed.py --draft_mode exact --also "--draft_mode skip --threshold 0.95"
    python evaluation/speed/evaluate_speed.py --specbench Data/samples/specbench.jsonl --categories math,coding

Greedy, 64 tokens behind each prompt: built-in ones, or the first turns of SpecBench questions. Contestants: the target
alone, speculative decoding in each mode, transformers' generate, assisted generation (its defaults, and fixed γ) and
prompt lookup, llama.cpp where llama-cpp-python is installed. Who cannot take part is named with the reason.

Prints speeds (prompt included) with 95 % bootstrap intervals, ratios to plain decoding and to transformers' generate,
what a round is made of (acceptance, cost of a draft step, time of draft, verify and rest, the analytic speedup and the
share of it that is reached), what lanes on several devices and drafting ahead are worth, a draft step against the same
drafter under transformers, peak memory, and whether all greedy outputs are equal (on CPU the exit code is 1 where one
of those that must be is not).

--output keeps every measurement, prompt by prompt; a run that was stopped goes on with --resume.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from pdevis.benchmarks.speed.speed_devices import parse_layouts
from pdevis.cli import Parser, add_draft_flags, add_model_flags, draft_config, pair_arguments, run_main
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.util.argtypes import gamma_value, parse_value

TRANSFORMERS = ("generate", "assisted", "assisted-fixed", "lookup", "draft-step")
PARTS = ("speculative", *TRANSFORMERS, "llama.cpp")


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--gammas", metavar="LIST", default="4", help="draft tokens per round, or auto (default: 4)")
    group.add_argument("--modes", metavar="LIST", help="drafting modes (default: --draft_mode)")
    group.add_argument("--thresholds", metavar="LIST", help="of skip and parallel (default: --threshold)")
    group.add_argument("--checks", metavar="LIST", help="inline, planned (default: --check)")
    group.add_argument(
        "--also", metavar="FLAGS", action="append", default=[], help="a further drafter, by its own flags"
    )
    group.add_argument("--without", metavar="LIST", help=f"leave out: {', '.join(PARTS)}, or transformers for all its")
    group.add_argument("--draft_devices", metavar="LISTS", help="where the drafter runs: 'cpu:0;cpu:0,cpu:1', in turn")
    group.add_argument("--no_memory", dest="memory", action="store_false", help="leave out the peak memory")
    group.add_argument("--gguf", type=Path, metavar="FILE", help="the target's weights for llama.cpp")
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompts", type=int, default=12, metavar="N", help="how many, at most (default: 12)")
    group.add_argument("--length", type=int, default=64, metavar="N", help="new tokens behind each (default: 64)")
    group.add_argument("--specbench", type=Path, metavar="FILE", help="SpecBench questions instead of built-in prompts")
    group.add_argument("--categories", metavar="LIST", help="of the SpecBench file (default: all, in turn)")
    group = parser.add_argument_group("results")
    group.add_argument("--output", type=Path, metavar="FILE", help="keep all measurements as JSON (default: none)")
    there = group.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with a run that was stopped, if there is one")
    there.add_argument("--overwrite", action="store_true", help="start over, whatever is there")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    add_model_flags(parser)
    add_draft_flags(parser)
    return parser


def settings(args: Namespace) -> tuple[list[DraftConfig], list[int | str]]:
    """The drafting settings and γ to measure. Raises ValueError for a wrong word in a list."""
    base = pair_arguments(args)["draft"]

    def words(flag: str, text: str | None, name: str, convert: type, config: type = DraftConfig) -> list:
        if text is None:
            return [getattr(base, name)]
        try:
            return list(dict.fromkeys(parse_value(config, name, convert, word.strip()) for word in text.split(",")))
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None

    gammas = words("--gammas", args.gammas, "gamma", gamma_value, DecodeConfig)
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
    drafts += [draft for draft in map(also, args.also) if draft not in drafts]
    return drafts, gammas


def also(text: str) -> DraftConfig:
    """The drafting settings of one --also. Flags that it does not have mean their defaults."""
    parser = Parser(prog=f"--also {text!r}", usage="drafting flags only", add_help=False)
    add_draft_flags(parser)
    return draft_config(parser.parse_args(shlex.split(text)))


def without(args: Namespace) -> list[str]:
    """What --without leaves out. Raises ValueError for a word that is none of the parts."""
    found: list[str] = []
    for word in (args.without or "").split(",") if args.without else []:
        name = word.strip()
        if name not in (*PARTS, "transformers"):
            raise ValueError(f"--without: {name!r} must be among {', '.join((*PARTS, 'transformers'))}")
        found += TRANSFORMERS if name == "transformers" else [name]
    return list(dict.fromkeys(found))


def run(args: Namespace) -> int:
    for flag in ("prompts", "length"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag}: {getattr(args, flag)} must be an integer >= 1")
    if args.categories and not args.specbench:
        raise ValueError(f"--categories {args.categories}: needs --specbench FILE")
    if args.draft_devices and args.draft_device:
        raise ValueError("--draft_devices: takes the place of --draft_device; give one of them")
    parse_layouts(args.draft_devices)
    if args.resume and not args.output:
        raise ValueError("--resume: needs --output FILE, the run to go on with")
    if args.gguf and not args.gguf.is_file():
        raise ValueError(f"--gguf {args.gguf}: {'is a folder' if args.gguf.is_dir() else 'does not exist'}")
    chosen, left_out = settings(args), without(args)

    from pdevis.benchmarks.speed.speed_prompts import builtin_prompts, specbench_prompts

    if args.specbench:
        names = [name.strip() for name in args.categories.split(",")] if args.categories else None
        prompts = specbench_prompts(args.specbench, names, args.prompts)
    else:
        prompts = builtin_prompts(args.prompts)

    from pdevis.benchmarks.speed.speed_run import SpeedRun, run_speed

    return run_speed(SpeedRun(args, *chosen, prompts, left_out))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
