"""Summary of an ablation: the draft speedup and the retention of each cell of its grid, as JSON and as a table.

Draft speedup is drafted tokens / draft seconds of a cell over those of `exact`; retention is its acceptance rate over
that of `exact`: same γ, same questions, same run. Both, and the speed over the target, have 95 % bootstrap intervals
over questions. A cell is on the frontier if no other cell is at least as good in both and better in one.
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
STATIC_SETTING = ("target_retention", "corrections")  # which files before static schedules do not have
NUMBERS = ("drafted", "accepted", "draft_steps", "tokens", "skipped", "depth", "draft_seconds", "seconds")


@dataclass
class Grid:
    """One ablation run: the setting of each cell and its entries by question; `target` has the target's entries."""

    path: Path
    header: dict[str, Any]
    settings: list[dict[str, Any]]
    target: dict[int, dict[str, Any]]
    cells: list[dict[int, dict[str, Any]]]
    partial: bool = False


def load_grid(path: Path) -> Grid:
    """Read what evaluate_ablation.py wrote, or the journal of its unfinished run (*.partial.jsonl).

    Raises:
        ValueError: the file does not exist, is broken, or is not an ablation's; in one line.
    """
    output = output_of_journal(path)
    if output is not None:
        return _load_journals(path, output)
    try:
        result = read_result(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(result, dict) or not isinstance(result.get("cells"), list) or "target" not in result:
        raise ValueError(f"{path}: must be an object with 'target' and 'cells': not the result of evaluate_ablation.py")
    try:
        settings = [_read_setting(cell) for cell in result["cells"]]
        groups = [dict(enumerate(part["questions"])) for part in (result["target"], *result["cells"])]
        header = {key: value for key, value in result.items() if key not in ("target", "cells")}
        return _checked(Grid(path, header, settings, groups[0], groups[1:]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a cell of the grid is incomplete: {type(error).__name__} {error}") from None


def _read_setting(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the setting of a cell. Raises KeyError if it is incomplete."""
    return {name: cell[name] for name in SETTING} | {name: cell[name] for name in STATIC_SETTING if name in cell}


def _load_journals(path: Path, output: Path) -> Grid:
    journals = read_journals(find_journals(output) or [path])
    header = (journals[0].header or {}) if journals else {}
    cells = (header.get("settings") or {}).get("cells")
    if journals and not cells:
        raise ValueError(f"{path}: this is not the journal of an ablation, but of {header.get('benchmark')}")
    units = {unit: entry for journal in journals for unit, entry in journal.entries.items()}
    if not units:
        raise ValueError(f"{path}: holds no results yet")
    groups: list[dict[int, dict[str, Any]]] = [{} for _ in range(1 + len(cells))]
    for unit, entry in units.items():
        question, position = divmod(unit, len(groups))
        groups[position][question] = entry
    settings = [_read_setting(cell) for cell in cells]
    return _checked(Grid(path, header, settings, groups[0], groups[1:], partial=True))


def _checked(grid: Grid) -> Grid:
    for setting, cell in zip([{"mode": "target"}, *grid.settings], [grid.target, *grid.cells]):
        for entry in cell.values():
            missing = [] if "error" in entry else [name for name in NUMBERS if name not in entry]
            if missing:
                location = f"question {entry.get('question_id')!r} of {setting['mode']}"
                raise ValueError(f"{grid.path}: {location} lacks {', '.join(missing)}")
    return grid


def summarize_grid(grid: Grid) -> dict[str, Any]:
    """The summary of an ablation, ready for JSON."""
    cells = [_summarize_cell(grid, number) for number in range(len(grid.cells))]
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
        "target": {"items": len(target), "tokens_per_second": _statistic([target], ("tokens", "seconds"), ratio)},
        "cells": cells,
        "run": grid.header,
    }


def _summarize_cell(grid: Grid, number: int) -> dict[str, Any]:
    setting, entries = grid.settings[number], grid.cells[number]
    good = [entry for entry in entries.values() if "error" not in entry]
    base = next(
        (i for i, cell in enumerate(grid.settings) if cell["mode"] == "exact" and cell["gamma"] == setting["gamma"]),
        None,
    )
    exact = _paired(entries, grid.cells[base]) if base is not None else ([], [])
    compared = [entry["same_as_target"] for entry in good if "same_as_target" in entry]
    ties = sum(bool((entry.get("first_difference") or {}).get("near_tie")) for entry in good)
    values = {
        "draft_tokens_per_second": _statistic([good], ("drafted", "draft_seconds"), ratio),
        "acceptance_rate": _statistic([good], ("accepted", "drafted"), ratio),
        "mean_skip": _statistic([good], ("skipped", "draft_steps"), ratio),
        "serial_depth": _statistic([good], ("depth", "draft_steps"), ratio),
        **compare_drafting(*exact),
        "speed_over_target": _statistic(_paired(entries, grid.target), ("tokens", "seconds"), ratio_of_ratios),
        "same_as_target": {"items": len(compared), "same": sum(compared), "near_ties": ties} if compared else None,
    }
    counts = {"items": len(good), "errors": len(entries) - len(good)}
    return {**setting, **counts, **{name: value for name, value in values.items() if value is not None}}


def _paired(entries: dict[int, Any], base: dict[int, Any]) -> list[list[dict[str, Any]]]:
    """Entries of the questions that did not fail in either, of the cell and of its base."""
    both = [i for i in entries if i in base and "error" not in entries[i] and "error" not in base[i]]
    return [[part[i] for i in both] for part in (entries, base)]


def _statistic(
    parts: list[list[dict[str, Any]]], names: tuple[str, str], statistic: Statistic
) -> dict[str, Any] | None:
    return as_json(interval([[entry[name] for entry in part] for part in parts for name in names], statistic))


def _dominates(point: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """True if a (draft speedup, retention) is at least as good as the other in both, and better in one."""
    difference = np.array([point[i]["value"] - other[i]["value"] for i in (0, 1)])
    return bool((difference >= 0).all() and (difference > 0).any())


def show_grid(console: Console, summary: dict[str, Any]) -> None:
    """Print the result of `summarize_grid` as a table; cells on the frontier have a star."""
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
                *(MISSING if cell[name] is None else f"{cell[name]}" for name in ("check", "threshold")),
                _retention_target(cell),
                *(MISSING if cell[name] is None else f"{cell[name]}" for name in ("window", "gamma")),
                format_interval(cell.get("draft_speedup"), 2, brief=brief),
                format_interval(cell.get("retention"), 3, brief=brief),
                format_interval(cell.get("acceptance_rate"), 3, brief=brief),
                *(format_number((cell.get(name) or {}).get("value"), 2) for name in ("mean_skip", "serial_depth")),
                format_interval(cell.get("speed_over_target"), 2, brief=brief),
                f"{same['same']}/{same['items']}" if same else MISSING,
                str(cell["errors"]),
            )
        )
    columns = ("draft speedup", "retention", "acceptance", "skip", "depth", "speed / target", "equal", "failed")
    console.print(make_table(("mode", "check", "threshold", "target", "window", "γ", *columns), rows))
    console.print(
        Text("* on the frontier: no other cell is at least as good in draft speedup and retention, and better in one"),
        soft_wrap=True,
    )


def _retention_target(cell: dict[str, Any]) -> str:
    """Return the retention that a static schedule was chosen for, or the file that it comes from."""
    if cell.get("corrections"):
        return Path(cell["corrections"]).name
    target = cell.get("target_retention")
    return MISSING if target is None else f"{target:g}"
