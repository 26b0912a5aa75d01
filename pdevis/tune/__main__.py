r"""Measure this machine and a pair of models, and write a profile: settings for the other commands' --profile FILE.

    python -m pdevis.tune                                               # the embedded model, drafting for itself
    python -m pdevis.tune --target_model qwen-8b --drafter_model qwen-0.6b --output qwen.json
    python -m pdevis.tune --formats packed/int8,int8/int8               # compare weight formats, target/drafter
    python appInference.py --profile pdevis-profile.json

Measured, in about a minute for each pair of formats: threads of the CPU; a forward over 1 to 16 tokens of both models
and its sublayers; on the target's own greedy text, how far each layer of the drafter turns the hidden state, and how
many tokens each drafting rule gets accepted in what time. From these follows what each rule brings at its best γ; the
best one is then run against plain decoding on a prompt that was not measured.

exact is preferred to a rule that promises less than 3 % more. γ is written as auto, which begins with the costs found
and adapts to the text; as a number only where drafting pays and that number was faster by more than 10 % in the last
comparison. Acceptance depends on the text: --prompts and --length give it more to go by.
The target's format is what is asked for: it decides what is written, not only how fast.

Tables go to stdout, progress to stderr. Exit code: 0, 2 for a mistake in the flags, 130 after Ctrl-C (no file then).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdevis.cli import Parser, add_model_flags, run_main
from pdevis.config import DraftConfig
from pdevis.util.argtypes import choice, comma_list, parse_value, positive_int

MODES = ("exact", "skip", "parallel")
DEFAULT_OUTPUT = Path("pdevis-profile.json")


def _threshold(text: str) -> float:
    try:
        return parse_value(DraftConfig, "threshold", float, text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _formats(text: str) -> tuple[str, str]:
    target, slash, drafter = text.partition("/")
    if not (target and slash and drafter):
        raise argparse.ArgumentTypeError(f"{text!r} must be TARGET/DRAFTER, such as packed/int8")
    return target, drafter


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.tune", description=__doc__)
    group = parser.add_argument_group("what is measured")

    def add(flag: str, kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> None:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {shown})")

    add("--prompts", positive_int, 3, "N", "built-in prompts")
    add("--length", positive_int, 32, "N", "new tokens behind each")
    add("--repeats", positive_int, 3, "N", "timings of each forward; the median counts")
    add("--modes", comma_list(choice(*MODES)), MODES, "LIST", "drafting modes; exact is always tried")
    add("--thresholds", comma_list(_threshold), (0.9, 0.95, 0.97), "LIST", "of skip; parallel takes the last")
    group.add_argument(
        "--formats", type=comma_list(_formats), metavar="LIST", help="pairs of weight formats, as packed/int8,int8/int8"
    )
    group = parser.add_argument_group("result")
    group.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, metavar="FILE", help="the profile (default: %(default)s)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a profile that is there")
    add_model_flags(parser, profile=False)
    return parser


def run(args: argparse.Namespace) -> int:
    from pdevis.tune.tune_run import run_tune  # torch takes seconds, and --help needs none of it

    return run_tune(args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
