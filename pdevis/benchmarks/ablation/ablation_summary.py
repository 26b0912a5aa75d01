"""An ablation's grid becomes a table: what each setting gains in drafting speed, and what it keeps of the acceptance.

Draft speedup is drafted tokens / draft seconds of a cell over those of `exact`; retention is its acceptance rate over
that of `exact`: same γ, same questions, same run. Both, and the speed over the target, come with 95 % bootstrap
intervals over questions. A cell is on the frontier where no other drafts as fast and keeps as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from pdevis.benchmarks.bootstrap import (
    Statistic,
    as_json,
    describe_bootstrap,
    format_interval,
    interval,
    ratio,
    ratio_of_ratios,
)
from pdevis.benchmarks.runs.journal import find_journals, read_journals, read_result
from pdevis.benchmarks.summary.load_results import output_of_journal
from pdevis.benchmarks.summary.metrics import compare_drafting
from pdevis.benchmarks.summary.summary_table import NARROW_COLUMNS, run_lines
from pdevis.util.console import MISSING, format_number, make_table

SETTING = ("mode", "check", "threshold", "window", "gamma")
NUMBERS = ("drafted", "accepted", "draft_steps", "tokens", "skipped", "depth", "draft_seconds", "seconds")


@dataclass
class Grid:
    """One ablation run: per cell its setting and its questions by number; `target` are the target's own."""

    path: Path
    header: dict[str, Any]
    settings: list[dict[str, Any]]
    target: dict[int, dict[str, Any]]
    cells: list[dict[int, dict[str, Any]]]
    partial: bool = False


def load_grid(path: Path) -> Grid:
    """Read what evaluate_ablation.py wrote, or the journal of its unfinished run (*.partial.jsonl).

    Raises:
        ValueError: for a file that is missing, broken, or no ablation's; on one line.
    """
    output = output_of_journal(path)
    if output is not None:
        return _load_journals(path, output)
    try:
        found = read_result(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list) or "target" not in found:
        raise ValueError(f"{path}: must be an object with 'target' and 'cells': not the result of evaluate_ablation.py")
    try:
        settings = [{name: cell[name] for name in SETTING} for cell in found["cells"]]
        groups = [dict(enumerate(part["questions"])) for part in (found["target"], *found["cells"])]
        header = {key: value for key, value in found.items() if key not in ("target", "cells")}
        return _checked(Grid(path, header, settings, groups[0], groups[1:]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a cell of the grid is incomplete: {type(error).__name__} {error}") from None


def _load_journals(path: Path, output: Path) -> Grid:
    found = read_journals(find_journals(output) or [path])
    header = (found[0].header or {}) if found else {}
    cells = (header.get("settings") or {}).get("cells")
    if found and not cells:
        raise ValueError(f"{path}: this is not the journal of an ablation, but of {header.get('benchmark')}")
    units = {unit: entry for each in found for unit, entry in each.entries.items()}
    if not units:
        raise ValueError(f"{path}: holds no results yet")
    groups: list[dict[int, dict[str, Any]]] = [{} for _ in range(1 + len(cells))]
    for unit, entry in units.items():
        question, place = divmod(unit, len(groups))
        groups[place][question] = entry
    return _checked(Grid(path, header, cells, groups[0], groups[1:], partial=True))


def _checked(grid: Grid) -> Grid:
    for setting, cell in zip([{"mode": "target"}, *grid.settings], [grid.target, *grid.cells]):
        for entry in cell.values():
            lacking = [] if "error" in entry else [name for name in NUMBERS if name not in entry]
            if lacking:
                place = f"question {entry.get('question_id')!r} of {setting['mode']}"
                raise ValueError(f"{grid.path}: {place} lacks {', '.join(lacking)}")
    return grid


def summarize_grid(grid: Grid) -> dict[str, Any]:
    """The summary of an ablation, ready for JSON."""
    cells = [_cell(grid, place) for place in range(len(grid.cells))]
    points = [(cell.get("draft_speedup"), cell.get("retention")) for cell in cells]
    for cell, point in zip(cells, points):
        cell["frontier"] = all(point) and not any(_dominates(other, point) for other in points if all(other))
    target = [entry for entry in grid.target.values() if "error" not in entry]
    return {
        "benchmark": grid.header.get("benchmark"),
        "input": str(grid.path),
        "partial": grid.partial,
        "items": len(grid.target),
        "errors": sum("error" in entry for cell in [grid.target, *grid.cells] for entry in cell.values()),
        "intervals": describe_bootstrap("percentile bootstrap over questions, paired with exact of the same gamma"),
        "target": {"items": len(target), "tokens_per_second": _figure([target], ("tokens", "seconds"), ratio)},
        "cells": cells,
        "run": grid.header,
    }


def _cell(grid: Grid, place: int) -> dict[str, Any]:
    setting, entries = grid.settings[place], grid.cells[place]
    good = [entry for entry in entries.values() if "error" not in entry]
    base = next(
        (i for i, each in enumerate(grid.settings) if each["mode"] == "exact" and each["gamma"] == setting["gamma"]),
        None,
    )
    exact = _paired(entries, grid.cells[base]) if base is not None else ([], [])
    compared = [entry["same_as_target"] for entry in good if "same_as_target" in entry]
    ties = sum(bool((entry.get("first_difference") or {}).get("near_tie")) for entry in good)
    figures = {
        "draft_tokens_per_second": _figure([good], ("drafted", "draft_seconds"), ratio),
        "acceptance_rate": _figure([good], ("accepted", "drafted"), ratio),
        "mean_skip": _figure([good], ("skipped", "draft_steps"), ratio),
        "serial_depth": _figure([good], ("depth", "draft_steps"), ratio),
        **compare_drafting(*exact),
        "speed_over_target": _figure(_paired(entries, grid.target), ("tokens", "seconds"), ratio_of_ratios),
        "same_as_target": {"items": len(compared), "same": sum(compared), "near_ties": ties} if compared else None,
    }
    counts = {"items": len(good), "errors": len(entries) - len(good)}
    return {**setting, **counts, **{name: value for name, value in figures.items() if value is not None}}


def _paired(entries: dict[int, Any], base: dict[int, Any]) -> list[list[dict[str, Any]]]:
    """The questions that both have: of the cell, and of its base."""
    both = [i for i in entries if i in base and "error" not in entries[i] and "error" not in base[i]]
    return [[part[i] for i in both] for part in (entries, base)]


def _figure(parts: list[list[dict[str, Any]]], names: tuple[str, str], statistic: Statistic) -> dict[str, Any] | None:
    return as_json(interval([[entry[name] for entry in part] for part in parts for name in names], statistic))


def _dominates(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether a (draft speedup, retention) is at least as good in both, and better in one."""
    difference = np.array([one[i]["value"] - other[i]["value"] for i in (0, 1)])
    return bool((difference >= 0).all() and (difference > 0).any())


def show_grid(console: Console, summary: dict[str, Any]) -> None:
    """Print the table of what `summarize_grid` returns; cells on the frontier are starred."""
    state = "PARTIAL, the run has not finished: " if summary["partial"] else ""
    counts = f"{summary['items']} items, {summary['errors']} failed answers"
    console.print(Text(f"{summary['benchmark']} ablation: {state}{counts} (brackets: 95 % bootstrap intervals)"))
    for text in run_lines(summary["run"]):
        console.print(Text(text), soft_wrap=True)
    speed = format_interval(summary["target"]["tokens_per_second"], 2)
    console.print(Text(f"the target alone: {speed} tokens/s"))
    brief = console.width < NARROW_COLUMNS
    rows = []
    for cell in summary["cells"]:
        same = cell.get("same_as_target")
        rows.append(
            (
                cell["mode"] + " *" * cell["frontier"],
                *(MISSING if cell[name] is None else f"{cell[name]}" for name in SETTING[1:]),
                format_interval(cell.get("draft_speedup"), 2, brief=brief),
                format_interval(cell.get("retention"), 3, brief=brief),
                format_interval(cell.get("acceptance_rate"), 3, brief=brief),
                *(format_number((cell.get(name) or {}).get("value"), 2) for name in ("mean_skip", "serial_depth")),
                format_interval(cell.get("speed_over_target"), 2, brief=brief),
                f"{same['same']}/{same['items']}" if same else MISSING,
                str(cell["errors"]),
            )
        )
    figures = ("draft speedup", "retention", "acceptance", "skip", "depth", "speed / target", "equal", "failed")
    console.print(make_table(("mode", "check", "threshold", "window", "γ", *figures), rows))
    console.print(Text("* on the frontier: no other cell drafts as fast and keeps as much"), soft_wrap=True)
