r"""Choose a static schedule for a drafter, and fit corrections that make up for part of what it changes.

    python -m pdevis.calibrate                          # the embedded model, drafting for itself
    python -m pdevis.calibrate --target_model qwen-8b --drafter_model qwen-0.6b --retention 0.9 --output q.safetensors
    python appInference.py --check static --corrections pdevis-corrections.safetensors

The drafter's layers are tried on calibration text: groups that run as one wide layer (--draft_mode parallel), layers
and sublayers that are left out (--draft_mode skip), or both (auto). Each schedule that is then tried as a whole gets
corrections of its own, fitted in closed form on three quarters of the text and judged on the rest. The result is the
fastest schedule that is predicted to keep --retention of the drafter's acceptance rate.

--check static alone chooses a schedule without corrections, when a pair is loaded, and keeps the choice in the cache.

The table goes to stdout, progress to stderr. Exit code: 0; 2 for a mistake in the flags; 130 after Ctrl-C (no file).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdevis.cli import Parser, add_draft_flags, add_model_flags, run_main
from pdevis.util.argtypes import bounded_float, positive_int

DEFAULT_OUTPUT = Path("pdevis-corrections.safetensors")
DEFAULT_RANK, DEFAULT_RIDGE = 128, 0.3  # docs/lab-notebook.md has the experiment
UNUSED = (
    "check",
    "schedule",
    "stagger",
    "threshold",
    "calibrate",
    "corrections",
)  # drafting settings that the choice ignores


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.calibrate", description=__doc__)
    group = parser.add_argument_group("corrections")

    def add(flag: str, kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> None:
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: %(default)s)")

    add("--rank", positive_int, DEFAULT_RANK, "N", "rank of each map; the hidden size or more: full")
    add("--ridge", bounded_float(exclusive=True), DEFAULT_RIDGE, "X", "λ, in units of the mean square of an input")
    group = parser.add_argument_group("result")
    add("--output", Path, DEFAULT_OUTPUT, "FILE", "the corrections, with their schedule")
    group.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_model_flags(parser, profile=False)
    add_draft_flags(parser, without=UNUSED)
    return parser


def run(args: argparse.Namespace) -> int:
    from pdevis.calibrate.calibrate_run import run_calibrate  # imports torch, which --help does not need

    return run_calibrate(args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
