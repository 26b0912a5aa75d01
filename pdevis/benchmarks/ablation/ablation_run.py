"""One benchmark over a grid of drafting settings, in one process, without reloading the models.

Every question is answered by the target (the reference for equality), then under each cell of the grid, among them
`exact` with the same γ, so that a temporary slowdown of the machine affects all cells. A unit of work is one question
under one cell.

    run_main(run_ablation, ablation_parser(__doc__, root).parse_args())
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.conversation import Conversation, run_conversation, warm_up
from pdevis.benchmarks.runs.distributed import DistEnv, process_group
from pdevis.benchmarks.runs.journal import Output
from pdevis.benchmarks.runs.lossless_check import compare_turns, count_matches, format_match_counts
from pdevis.benchmarks.runs.result_files import Entry, encode_meta
from pdevis.benchmarks.runs.resumable_run import ResumableRun
from pdevis.benchmarks.runs.run_spec import RunSpec, evaluation_parser, join_as_worker, locked_output, make_run_spec
from pdevis.cli import Parser, draft_config, is_main_rank
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.util.argtypes import comma_list, one_line, parse_value

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

# axis of the grid: type, field of the config, config, default values
GRID = {
    "modes": (str, "mode", DraftConfig, ("exact", "skip", "parallel")),
    "checks": (str, "check", DraftConfig, ("planned",)),
    "thresholds": (float, "threshold", DraftConfig, (0.8, 0.9, 0.95)),
    "windows": (int, "window", DraftConfig, (2,)),
    "retentions": (float, "retention", DraftConfig, (0.95,)),
    "gammas": (int, "gamma", DecodeConfig, (4,)),
}
SET_BY_GRID = {setting if setting != "mode" else "draft_mode": name for name, (_, setting, *_) in GRID.items()}
NOT_IN_A_GRID = ("schedule", "corrections", "stagger")  # would turn every cell into a static one
SUMS = ("drafted", "accepted", "draft_steps", "tokens", "rounds", "skipped", "depth", "draft_seconds", "seconds")


@dataclass(frozen=True)
class Cell:
    """One setting of the grid; values that its mode ignores are None.

    `target_retention` is `DraftConfig.retention`, `corrections` the name of a file.
    """

    mode: str
    check: str | None
    threshold: float | None
    window: int | None
    gamma: int
    target_retention: float | None = None
    corrections: str | None = None

    def draft(self, base: DraftConfig) -> DraftConfig:
        """Drafting settings of this cell: `base`, except for what the grid sets."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "gamma"}
        if "target_retention" in given:
            given["retention"] = given.pop("target_retention")
        return replace(base, **given)


def _checked(convert: type, setting: str, config: type) -> Callable[[str], Any]:
    """Parser of one value of an axis, checked by the config it belongs to."""

    def parse(text: str) -> Any:
        try:
            value = parse_value(config, setting, convert, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value == "auto":
            raise argparse.ArgumentTypeError("'auto' cannot be part of a grid: name the modes")
        return value

    return parse


def ablation_parser(description: str, root: Path) -> Parser:
    """Parser of an evaluate script with a comma list for each axis of the grid instead of --methods."""
    parser = evaluation_parser(None, description, root)
    for action in parser._actions:
        if action.dest in SET_BY_GRID:
            action.default, action.help = None, argparse.SUPPRESS
        if action.dest in NOT_IN_A_GRID:
            action.help = argparse.SUPPRESS
    group = parser.add_argument_group("grid", "Comma lists; every combination is a cell. exact is always among them.")
    for name, (convert, setting, config, default) in GRID.items():
        group.add_argument(
            f"--{name}",
            type=comma_list(_checked(convert, setting, config)),
            default=default,
            metavar="LIST",
            help=f"values of {setting} (default: {','.join(map(str, default))})",
        )
    text = "files of python -m pdevis.calibrate; each is a cell with the check static (default: none)"
    group.add_argument("--corrections_files", type=comma_list(str), default=(), metavar="LIST", help=text)
    return parser


def make_grid(args: argparse.Namespace) -> list[Cell]:
    """The cells, `exact` first for each γ.

    `skip` has no lanes, hence no window, unless the check is inline; static schedules have a retention instead of a
    threshold.
    """
    cells: list[Cell] = []
    for gamma in args.gammas:
        cells.append(Cell("exact", None, None, None, gamma))
        axes = itertools.product(args.modes, args.checks, args.windows)
        for mode, check, window in axes:
            lanes = None if mode == "skip" and check != "inline" else window
            if mode == "exact":
                continue
            if check == "static":
                cells += [Cell(mode, check, None, lanes, gamma, retention) for retention in args.retentions]
            else:
                cells += [Cell(mode, check, threshold, lanes, gamma) for threshold in args.thresholds]
        cells += [Cell("parallel", "static", None, None, gamma, None, file) for file in args.corrections_files]
    return list(dict.fromkeys(cells))


@dataclass(frozen=True)
class GridSpec:
    """A run over a grid; unit 0 of each question is the target's answer, the others are its cells."""

    run: RunSpec
    cells: tuple[Cell, ...]

    @property
    def units_per_item(self) -> int:
        return 1 + len(self.cells)

    def header(self) -> dict[str, Any]:
        """Header of the run's files: the cells instead of what the grid sets."""
        settings = {name: value for name, value in self.run.settings.items() if name not in SET_BY_GRID}
        return self.run.header({**settings, "cells": [asdict(cell) for cell in self.cells]}) | {"kind": "ablation"}


def make_grid_spec(args: argparse.Namespace, *, env: DistEnv, output: Output, fresh_seed: int) -> GridSpec:
    """Turn the flags of `ablation_parser` into a `GridSpec`, and check it.

    Raises:
        ValueError, OSError: a mistake, in one line; among them a flag that the grid sets, and an invalid cell.
    """
    for setting, name in SET_BY_GRID.items():
        if getattr(args, setting) is not None:
            raise ValueError(f"--{setting} {getattr(args, setting)}: the grid sets it; use --{name}")
    plain = DraftConfig(mode="exact")
    for setting in NOT_IN_A_GRID:
        if getattr(args, setting):
            raise ValueError(f"--{setting}: cannot be part of a grid; use --checks static, or --corrections_files LIST")
    names = [name for name in SET_BY_GRID if name not in ("draft_mode", "gamma")]
    unused = {"draft_mode": plain.mode} | {name: getattr(plain, name) for name in names}
    run_args = argparse.Namespace(**{**vars(args), **unused, "gamma": args.gammas[0]})
    cells = tuple(make_grid(args))
    base = draft_config(run_args)
    for cell in cells:
        cell.draft(base)  # raises ValueError
    return GridSpec(make_run_spec(run_args, env=env, output=output, fresh_seed=fresh_seed), cells)


class CellRunner:
    """Answers questions under the cells of a grid; a unit that fails gets an entry with "error"."""

    def __init__(self, pair: SpeculativePair | None, spec: GridSpec) -> None:
        self.pair, self.spec = pair, spec
        self.settings = spec.run.generation_settings(pair)
        self._reference: tuple[int, Conversation] | None = None  # the target's answer to question number …
        self._warm: set[int] = set()

    def run(self, unit: int) -> Entry:
        """Entry of one question under one cell."""
        index, position = divmod(unit, self.spec.units_per_item)
        task, item = self.spec.run.task, self.spec.run.items[index]
        entry: Entry = {"question_id": task.entry(item)["question_id"], "cell": position}
        try:
            return entry | self._answer(index, task.prompts(item), position)
        except OSError:  # the drafter's processes have ended, or a disk is full: every further unit would fail too
            raise
        except Exception as error:
            return entry | {"error": f"{type(error).__name__}: {one_line(error)}"}

    def _answer(self, index: int, turns: Sequence[str], position: int) -> dict[str, Any]:
        """Numbers of one question under the cell at `position` (0: the target alone, which all cells need)."""
        assert self.pair is not None
        cell = self.spec.cells[position - 1] if position else None
        method, decode = "speculative" if cell else "target", self.settings.decode
        if cell:
            self.pair.configure(cell.draft(self.spec.run.draft))
            decode = replace(decode, gamma=cell.gamma)
        settings = replace(self.settings, decode=decode, methods=(method,))
        if position not in self._warm:
            warm_up(self.pair, turns, settings)
            self._warm.add(position)
        if self._reference is None or self._reference[0] != index:  # a resumed run may start after the target's unit
            reference = run_conversation(self.pair, turns, "target", settings=self.settings, index=index)
            self._reference = index, reference
        reference = self._reference[1]
        if cell is None:
            return _sum_answers(reference)
        conversation = run_conversation(self.pair, turns, method, settings=settings, index=index)
        numbers = _sum_answers(conversation)
        if decode.greedy:
            numbers |= compare_turns(self.pair, conversation.prompts, reference.answers, conversation.answers)
        return numbers


def _sum_answers(conversation: Conversation) -> dict[str, Any]:
    """Sums over the turns of a conversation, one for each of `SUMS`."""
    stats = DecodeStats.sum([answer.stats for answer in conversation.answers])
    renamed = {"tokens": stats.new_tokens, "seconds": stats.decode_seconds}
    return {name: renamed[name] if name in renamed else getattr(stats, name) for name in SUMS}


def assemble(entries: Sequence[Entry], cells: Sequence[Cell]) -> dict[str, Any]:
    """{"target": …, "cells": […]}: sums over the questions that did not fail, and the numbers of each question."""
    per_item = 1 + len(cells)
    target, *others = (_sum_questions(entries[position::per_item]) for position in range(per_item))
    return {"target": target, "cells": [asdict(cell) | sums for cell, sums in zip(cells, others)]}


def _sum_questions(entries: Sequence[Entry]) -> dict[str, Any]:
    good = [entry for entry in entries if "error" not in entry]
    total = {name: sum(entry[name] for entry in good) for name in SUMS}
    steps, drafted = total["draft_steps"], total["drafted"]
    return {
        "mean_skip": total["skipped"] / steps if steps else None,
        "serial_depth": total["depth"] / steps if steps else None,
        "acceptance_rate": total["accepted"] / drafted if drafted else None,
        **total,
        "equality": count_matches(good),
        "failed": len(entries) - len(good),
        "questions": [{name: value for name, value in entry.items() if name != "cell"} for entry in entries],
    }


def measure_grid(spec: GridSpec, env: DistEnv) -> int:
    """Measure all cells and write the files of the run; returns the exit code: 1 if a unit failed."""
    per_item = spec.units_per_item
    run = ResumableRun(
        f"{spec.run.task.name} ablation",
        header=spec.header(),
        units=per_item * len(spec.run.items),
        output=spec.run.output,
        env=env,
        group=per_item,
        progress=spec.run.progress,
        question_ids=[spec.run.task.entry(item)["question_id"] for item in spec.run.items for _ in range(per_item)],
    )
    if run.is_complete:
        return run.report_complete()

    pair = env.run_on_all(lambda: spec.run.pair.load() if run.todo else None)
    runner = CellRunner(pair, spec)
    with run.recording(pair):
        for unit in run.todo:
            entry = runner.run(unit)
            run.add(unit, entry)
            run.show_progress({"cell": str(entry["cell"])})

    entries = run.collect()
    matches = count_matches(entry for entry in entries if "error" not in entry)
    meta = run.meta(entries, {"equality": matches, **spec.run.sampling(run.header["pair"]), **spec.run.origin})
    run.write(encode_meta(meta | assemble(entries, spec.cells)), meta)
    return run.report(entries, [format_match_counts(matches)] if matches else [])


def run_ablation(args: argparse.Namespace) -> int:
    """Measure the grid according to the flags; returns the exit code: 1 if a unit failed.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: finished units are kept.
    """
    if not is_main_rank(args):
        return join_as_worker(args)
    with process_group(args) as env, locked_output(args, env=env, name="ablation") as output:
        fresh_seed = env.shared_seed()
        spec = env.run_on_all(lambda: make_grid_spec(args, env=env, output=output, fresh_seed=fresh_seed))
        return measure_grid(spec, env)
