"""Compare static schedules of a drafter on text that neither their choice nor their corrections have seen.

    python tools/compare_schedules.py                                              # the embedded model, a few minutes
    python tools/compare_schedules.py --model FOLDER-0.5b --text TEXT --depth_only --ranks 32,128,0

Schedules are chosen by KL and by hidden-state cosine, at equal cost (measured seconds, or serial depth with
--depth_only), and the former get corrections of several ranks (0: full), λ and numbers of fitted tokens. Reported is
the change of the drafter's output on --text: KL divergence in nats, share of changed argmaxes, predicted retention, and
the same for a target with the drafter's own weights. --text is plain text; without it, schedules are judged on the
documents of the calibration text that were held out, on which they were also chosen.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdevis.cli import DEFAULT_TARGET, Parser, run_main
from pdevis.config import SUBLAYER_MODES, DraftConfig
from pdevis.util.argtypes import bounded_float, choice, comma_list, positive_int

if TYPE_CHECKING:
    from pdevis.calibrate.choose_schedule import Part
    from pdevis.calibrate.teacher_forcing import ExactStates
    from pdevis.drafting.corrections import Corrections
    from pdevis.drafting.schedule import Schedule
    from pdevis.models.stack import DecoderStack

BISECTIONS = 30
RIDGE, RANK = 0.3, 128  # while the other one varies
Row = tuple[str, ...]


def _rank(text: str) -> int:
    return 0 if text == "0" else positive_int(text)


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_TARGET, help="the drafter: catalog key, hub id or folder (default: %(default)s)")
    add("--precision", default="auto", metavar="FORMAT", help="its weight format (default: auto)")
    add("--calibration_text", metavar="FILE", help="plain text (default: a text of the package)")
    add("--text", metavar="FILE", help="plain text to judge on (default: the held-out part of the calibration text)")
    add("--mode", type=choice("auto", *SUBLAYER_MODES), default="auto", help="what schedules may do (default: auto)")
    add("--window", type=positive_int, default=2, metavar="N", help="lanes of a group (default: %(default)s)")
    fractions = comma_list(bounded_float(0, 1))
    text = "costs of the schedules, as a fraction of exact layers (default: 0.9,0.8,0.7)"
    add("--costs", type=fractions, default=(0.9, 0.8, 0.7), metavar="LIST", help=text)
    add("--depth_only", action="store_true", help="the cost is the serial depth, as on a device bound by kernels")
    add("--ranks", type=comma_list(_rank), default=(32, 128, 0), metavar="LIST", help="of maps; 0: full")
    add("--ridges", type=comma_list(bounded_float(exclusive=True)), default=(0.1, 0.3, 1.0), metavar="LIST", help="λ")
    text = "numbers of tokens that corrections are fitted on, at most (default: 500,1500,4000)"
    add("--tokens", type=comma_list(positive_int), default=(500, 1500, 4000), metavar="LIST", help=text)
    return parser


@dataclass(frozen=True)
class Setup:
    """A drafter with the exact states of the texts, and the parts that schedules are made of."""

    stack: DecoderStack
    fitted: dict[int, ExactStates]  # by number of tokens
    judged: ExactStates
    by_kl: Sequence[Part]
    by_cosine: Sequence[Part]

    def row(self, name: str, schedule: Schedule, corrections: Corrections | None = None) -> Row:
        """Return the measurements of a schedule."""
        import torch

        from pdevis.drafting.wide_layers import make_layers

        options = () if corrections is None else (corrections,)
        with torch.inference_mode():
            change = self.judged.change_under(make_layers(self.stack, schedule, *options))
        numbers = (change.kl, change.changed, change.retention, change.self_retention)
        return (name, f"{schedule.layers * 2 / schedule.depth:.2f}x", *(f"{number:.3f}" for number in numbers))


def set_up(args: Namespace, log: Callable[[str], None]) -> Setup:
    """Load the drafter, read the texts, and measure the parts. Raises ValueError for a user's mistake."""
    from pdevis.calibrate.choose_schedule import cosine_effects, measure_parts
    from pdevis.calibrate.schedule_source import PART_POSITIONS, read_text_for
    from pdevis.calibrate.teacher_forcing import ExactStates
    from pdevis.models.stack import DecoderStack
    from pdevis.pair import load_pair

    pair = load_pair(args.model, device="cpu", draft_precision=args.precision, draft=DraftConfig(mode="exact"))
    stack = pair.drafter
    if not isinstance(stack, DecoderStack):
        raise ValueError(f"--model {args.model}: must be a model whose layers pdevis runs itself")

    text = read_text_for(stack, pair.tokenizer, args.calibration_text)
    log(f"reading {text.tokens} tokens of {text.name}")
    fitted = {tokens: ExactStates(stack, text.fitted, tokens) for tokens in args.tokens}
    judged_text = read_text_for(stack, pair.tokenizer, args.text) if args.text else None
    documents = [*judged_text.fitted, *judged_text.held_out] if judged_text else text.held_out
    config = DraftConfig(mode=args.mode, check="static", window=args.window)
    states = ExactStates(stack, text.held_out, PART_POSITIONS)
    parts = measure_parts(stack, states, config, text.held_out[0], log)
    if args.depth_only:
        parts = [replace(part, seconds=float(part.group.depth if part.group else 0)) for part in parts]
    return Setup(
        stack=stack,
        fitted=fitted,
        judged=ExactStates(stack, documents, None),
        by_kl=parts,
        by_cosine=cosine_effects(parts, states),
    )


def schedule_of_cost(parts: Sequence[Part], layers: int, cost: float) -> Schedule:
    """Return the schedule with the smallest total effect that takes at most this fraction of the exact time."""
    from pdevis.calibrate.choose_schedule import fastest_schedule

    low, high = 1e-6, 1e3
    _, exact_seconds = fastest_schedule(parts, layers, 1e-9)
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        if fastest_schedule(parts, layers, middle)[1] <= cost * exact_seconds:
            high = middle
        else:
            low = middle
    return fastest_schedule(parts, layers, high)[0]


def compare(setup: Setup, args: Namespace) -> Iterator[Row]:
    """Yield the rows of the table."""
    from pdevis.calibrate.fit_corrections import FitSettings, fit_corrections

    layers, most = len(setup.stack.layers), max(args.tokens)
    for cost in args.costs:
        schedule = schedule_of_cost(setup.by_kl, layers, cost)
        yield setup.row(f"{cost:g} by cosine", schedule_of_cost(setup.by_cosine, layers, cost))
        yield setup.row(f"{cost:g} by KL: {schedule}", schedule)
        grid = [(rank, RIDGE, most) for rank in args.ranks] + [(RANK, ridge, most) for ridge in args.ridges]
        grid += [(RANK, RIDGE, tokens) for tokens in args.tokens]
        for rank, ridge, tokens in dict.fromkeys(grid):
            settings = FitSettings(ridge, rank=rank or None)
            corrections = fit_corrections(setup.stack, setup.fitted[tokens], schedule, settings)
            name = (
                f"{cost:g} corrected: rank {rank or 'full'}, λ {ridge:g}, {len(setup.fitted[tokens].hidden[0])} tokens"
            )
            yield setup.row(name, schedule, corrections)


def run(args: Namespace) -> None:
    from rich.text import Text

    from pdevis.util.console import make_console, make_table

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.text and not Path(args.text).is_file():
        raise ValueError(f"--text {args.text}: does not exist")
    setup = set_up(args, log)
    rows = []
    for row in compare(setup, args):
        log("  ".join(row))
        rows.append(row)
    console = make_console()
    console.print(Text(f"{args.model}, {len(setup.judged.hidden[0])} positions"))
    console.print(make_table(("schedule", "depth", "KL", "changed", "retention", "for itself"), rows))


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
