"""One benchmark over a grid of drafting settings, in one process, without reloading: which setting drafts how fast?

Every question is answered by the target (the reference for equality), then under each cell of the grid, `exact` with
the same γ among them, so that whatever slows the machine down for a while slows all cells. A unit of work is one
question under one cell.

    run_main(run_ablation, ablation_parser(__doc__, root).parse_args())
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.distributed import join_world, leave_world
from pdevis.benchmarks.runs.evaluation_flags import evaluation_parser
from pdevis.benchmarks.runs.jobs import Entry, Job, Options, execute
from pdevis.benchmarks.runs.lossless_check import compare_turns, tally, verdict
from pdevis.benchmarks.runs.output import encode_meta
from pdevis.benchmarks.runs.run_spec import Inputs, join_as_worker, read_inputs, uses_chat
from pdevis.benchmarks.runs.runner import Conditions, Conversation, converse, warm_up
from pdevis.cli import Parser, draft_config, is_main_rank
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import sum_stats
from pdevis.util.argtypes import comma_list, one_line, parse_value

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

GRID = {
    "modes": (str, "mode", DraftConfig, ("exact", "skip", "parallel")),
    "checks": (str, "check", DraftConfig, ("planned",)),
    "thresholds": (float, "threshold", DraftConfig, (0.8, 0.9, 0.95)),
    "windows": (int, "window", DraftConfig, (2,)),
    "gammas": (int, "gamma", DecodeConfig, (4,)),
}
SET_BY_GRID = {setting if setting != "mode" else "draft_mode": name for name, (_, setting, *_) in GRID.items()}
SUMS = ("drafted", "accepted", "draft_steps", "tokens", "rounds", "skipped", "depth", "draft_seconds", "seconds")


@dataclass(frozen=True)
class Cell:
    """One setting of the grid; what its mode does not look at is None."""

    mode: str
    check: str | None
    threshold: float | None
    window: int | None
    gamma: int

    def draft(self, base: DraftConfig) -> DraftConfig:
        """The drafting settings of this cell: those of the flags, but for what the grid sets."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "gamma"}
        return replace(base, **given)


def ablation_parser(description: str, root: Path) -> Parser:
    """The flags of an evaluate script, with a comma list for each axis of the grid instead of --methods."""
    parser = evaluation_parser(None, description, root)
    for action in parser._actions:
        if action.dest in SET_BY_GRID:
            action.default, action.help = None, argparse.SUPPRESS
    group = parser.add_argument_group("grid", "Comma lists; every combination is a cell. exact is always among them.")
    for name, (convert, setting, config, default) in GRID.items():
        group.add_argument(
            f"--{name}",
            type=comma_list(_checked(convert, setting, config)),
            default=default,
            metavar="LIST",
            help=f"values of {setting} (default: {','.join(map(str, default))})",
        )
    return parser


def make_grid(args: argparse.Namespace) -> list[Cell]:
    """The cells, `exact` first in each γ. A plan of `skip` has no lanes, hence no window."""
    cells: list[Cell] = []
    for gamma in args.gammas:
        cells.append(Cell("exact", None, None, None, gamma))
        axes = itertools.product(args.modes, args.checks, args.thresholds, args.windows)
        for mode, check, threshold, window in axes:
            if mode != "exact":
                lanes = None if (mode, check) == ("skip", "planned") else window
                cells.append(Cell(mode, check, threshold, lanes, gamma))
    return list(dict.fromkeys(cells))


def run_ablation(args: argparse.Namespace) -> int:
    """Run the grid as the flags say; returns the exit code: 1 where a unit has failed.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: finished units are kept.
    """
    if not is_main_rank(args):
        return join_as_worker(args)
    world = join_world(args)
    seed = world.seed()
    base = world.agree(lambda: _base(args))
    inputs = world.agree(lambda: read_inputs(args, world, seed, name="ablation"))
    cells = make_grid(args)
    settings = inputs.header["settings"]
    for name in ("draft_mode", "check", "threshold", "window", "gamma"):
        del settings[name]
    inputs.header["kind"] = "ablation"
    settings["cells"] = [asdict(cell) for cell in cells]
    per_item = 1 + len(cells)  # unit 0 of each question is the target's
    job = Job(
        name=f"{args.benchmark} ablation",
        header=inputs.header,
        units=per_item * len(inputs.items),
        produce=lambda pair, units: _produce(pair, units, inputs, cells, base, uses_chat(args, pair)),
        encode=lambda entries, meta: encode_meta(meta | assemble(entries, cells)),
        note=lambda entry: {"cell": entry["cell"]},
        report=_report,
        group=per_item,
        about=inputs.about,
    )
    code = execute(job, inputs.output, inputs.load, Options(args.resume, args.overwrite, args.progress), world)
    leave_world(world)
    return code


def assemble(entries: Sequence[Entry], cells: Sequence[Cell]) -> dict[str, Any]:
    """{"target": …, "cells": […]}: sums over the questions that did not fail, and each question's own numbers."""
    per_item = 1 + len(cells)
    found = [_sum_up(entries[place::per_item]) for place in range(per_item)]
    return {"target": found[0], "cells": [asdict(cell) | each for cell, each in zip(cells, found[1:])]}


def _sum_up(entries: Sequence[Entry]) -> dict[str, Any]:
    good = [entry for entry in entries if "error" not in entry]
    total = {name: sum(entry[name] for entry in good) for name in SUMS}
    steps, drafted = total["draft_steps"], total["drafted"]
    return {
        "mean_skip": total["skipped"] / steps if steps else None,
        "serial_depth": total["depth"] / steps if steps else None,
        "acceptance_rate": total["accepted"] / drafted if drafted else None,
        **total,
        "equality": tally(good),
        "failed": len(entries) - len(good),
        "questions": [{name: value for name, value in entry.items() if name != "cell"} for entry in entries],
    }


def _base(args: argparse.Namespace) -> DraftConfig:
    """The drafting flags that the grid leaves alone. Raises ValueError for one that it sets, and for a bad cell."""
    for setting, name in SET_BY_GRID.items():
        if getattr(args, setting) is not None:
            raise ValueError(f"--{setting} {getattr(args, setting)}: here the grid sets it, with --{name}")
    plain = DraftConfig(mode="exact")
    args.draft_mode, args.gamma = plain.mode, args.gammas[0]
    args.check, args.threshold, args.window = plain.check, plain.threshold, plain.window
    base = draft_config(args)
    for cell in make_grid(args):
        cell.draft(base)
    return base


def _produce(
    pair: SpeculativePair, units: list[int], inputs: Inputs, cells: list[Cell], base: DraftConfig, chat: bool
) -> Iterator[tuple[int, Entry]]:
    """Unit by unit. The target's answer is needed for the cells, and made anew where a resumed run begins behind it."""
    per_item = 1 + len(cells)
    conditions = Conditions(("target", "speculative"), inputs.decode, chat)
    reference: tuple[int, Conversation] | None = None
    warm: set[int] = set()
    for unit in units:
        index, place = divmod(unit, per_item)
        item = inputs.items[index]
        turns = inputs.task.prompts(item)
        method = "speculative" if place else "target"
        cell = cells[place - 1] if place else None
        entry: Entry = {"question_id": inputs.task.entry(item)["question_id"], "cell": place}
        try:
            gamma = cell.gamma if cell else inputs.decode.gamma
            now = replace(conditions, decode=replace(conditions.decode, gamma=gamma))
            if cell:
                pair.configure(cell.draft(base))
            if place not in warm:
                warm_up(pair, turns, replace(now, methods=(method,)))
                warm.add(place)
            if reference is None or reference[0] != index:
                reference = index, converse(pair, turns, "target", conditions, index)
            done = converse(pair, turns, method, now, index) if cell else reference[1]
            entry |= _numbers(done)
            if cell and inputs.decode.greedy:
                entry |= compare_turns(pair, done.prompts, reference[1].answers, done.answers)
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {one_line(error)}"
        yield unit, entry


def _numbers(done: Conversation) -> dict[str, Any]:
    stats = sum_stats([answer.stats for answer in done.answers])
    renamed = {"tokens": stats.new_tokens, "seconds": stats.decode_seconds}
    return {name: renamed[name] if name in renamed else getattr(stats, name) for name in SUMS}


def _report(entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
    counts = tally(entry for entry in entries if "error" not in entry)
    return {"equality": counts}, [verdict(counts)] if counts else []


def _checked(convert: type, setting: str, config: type) -> Any:
    def parse(text: str) -> Any:
        try:
            value = parse_value(config, setting, convert, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value == "auto":
            raise argparse.ArgumentTypeError("'auto' has no place in a grid: name the modes")
        return value

    return parse
