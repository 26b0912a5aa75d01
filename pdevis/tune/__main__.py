r"""Measure this machine and a pair of models, and write a profile: settings for the other commands' --profile FILE.

    python -m pdevis.tune                                               # the embedded model, drafting for itself
    python -m pdevis.tune --target_model qwen-8b --drafter_model qwen-0.6b --output qwen.json
    python -m pdevis.tune --formats packed/int8,int8/int8               # compare weight formats, target/drafter
    python appInference.py --profile pdevis-profile.json

Measured, in a few minutes for each pair of formats: threads of the CPU; a forward over 1 to 16 tokens of both models
and its sublayers; on the target's own greedy text, how much each layer of the drafter changes the direction of the
hidden state, and how many tokens each drafting rule gets accepted in what time. Static schedules, which are chosen on
--calibration_text first, are among the rules. From all this the speed of each rule at its best γ is predicted; the best
rule is then compared with plain decoding on a prompt that was not measured.

exact is preferred to a rule whose predicted speed is less than 3 % higher. γ is written as auto, which begins with the
measured costs and adapts to the text; as a number only if drafting pays and that number was faster by more than 10 % in
the last comparison. Acceptance depends on the text: more --prompts and a larger --length make it more reliable.
The target's weight format is the one asked for, since it changes the text that is written, not only the speed.

Tables go to stdout, progress to stderr. Exit code: 0; 2 for a mistake in the flags; 130 after Ctrl-C (no file then).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdevis.cli import Parser, add_model_flags, run_main
from pdevis.config import DraftConfig
from pdevis.util.argtypes import choice, comma_list, positive_int, settings_field

MODES = ("exact", "skip", "parallel")
DEFAULT_OUTPUT = Path("pdevis-profile.json")


def _format_pair(text: str) -> tuple[str, str]:
    target, slash, drafter = text.partition("/")
    if not (target and slash and drafter):
        raise argparse.ArgumentTypeError(f"{text!r} must be TARGET/DRAFTER, such as packed/int8")
    return target, drafter


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.tune", description=__doc__)
    group = parser.add_argument_group("measurements")

    def add(flag: str, kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> None:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {shown})")

    threshold = settings_field(DraftConfig, "threshold", float)
    add("--prompts", positive_int, 3, "N", "number of built-in prompts")
    add("--length", positive_int, 32, "N", "new tokens after each prompt")
    add("--repeats", positive_int, 3, "N", "timings of each forward, of which the median is used")
    add("--modes", comma_list(choice(*MODES)), MODES, "LIST", "drafting modes; exact is always tried")
    text = "thresholds of skip; parallel uses the last"
    add("--thresholds", comma_list(threshold), (0.9, 0.95, 0.97), "LIST", text)
    retention = settings_field(DraftConfig, "retention", float)
    text = "retentions of static schedules to try, of the modes given: groups, layers left out, or both"
    add("--retentions", comma_list(retention), (0.97, 0.95, 0.9), "LIST", text)
    text = "pairs of weight formats to compare, as in packed/int8,int8/int8"
    group.add_argument("--formats", type=comma_list(_format_pair), metavar="LIST", help=text)
    group = parser.add_argument_group("result")
    text = "the profile (default: %(default)s)"
    group.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="FILE", help=text)
    group.add_argument("--overwrite", action="store_true", help="replace an existing profile")
    add_model_flags(parser, profile=False)
    return parser


def run(args: argparse.Namespace) -> int:
    from pdevis.tune.tune_run import run_tune  # imports torch, which takes seconds and which --help does not need

    return run_tune(args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
