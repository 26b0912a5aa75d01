"""Pareto plot of an ablation: draft speedup against retention, a point per cell, and the frontier.

Labels are in a column at the right, with a line from each to its point, so that they never overlap. In a large grid
only `exact` and the cells on the frontier have labels: the table names all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import error_bars, mark_not_measured, new_figure, save, style_grid

MARKERS = {"exact": "o", "skip": "^", "parallel": "s"}
FILLS = {"exact": "white", "skip": "0.7", "parallel": "black"}
SHORT = {"threshold": "τ", "window": "W", "gamma": "γ"}
MAX_LABELLED = 16  # cells: in a larger grid the lines from the labels to the points would cross too often
HEIGHT_INCHES = 5.5
LABEL_GAP = 0.045  # distance of labels, as a fraction of the axes' height


def labels_of(cells: list[dict[str, Any]]) -> list[str]:
    """Short name of each cell: its mode, and the settings that differ between the cells that have them."""
    varying = [name for name in ("check", *SHORT) if len({cell[name] for cell in cells if cell[name] is not None}) > 1]
    names = []
    for cell in cells:
        given = [(name, cell[name]) for name in varying if cell[name] is not None]
        names.append(" ".join([cell["mode"], *(SHORT.get(name, "") + shown(value) for name, value in given)]))
    return names


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_grid(summary: dict[str, Any], path: Path) -> None:
    """Draw the result of `summarize_grid` into a PNG file, atomically. Raises OSError if it cannot be written."""
    save(plot_grid(summary), path)


def plot_grid(summary: dict[str, Any]) -> Any:
    """The matplotlib figure of an ablation."""
    cells = [cell for cell in summary["cells"] if "draft_speedup" in cell and "retention" in cell]
    figure = new_figure(10, HEIGHT_INCHES)
    axes = figure.subplots()
    axes.set_xlabel("draft speedup (draft tokens/s over exact)")
    axes.set_ylabel("retention (acceptance rate over exact)")
    state = "PARTIAL, " if summary["partial"] else ""
    title = f"{summary['benchmark']} ablation: {state}{summary['items']} questions, 95 % bootstrap intervals"
    axes.set_title(title, fontsize=11)
    if cells:
        _points(axes, cells)
        _labels(axes, cells)
    else:
        mark_not_measured(axes)
    return figure


def _points(axes: Any, cells: list[dict[str, Any]]) -> None:
    for mode in dict.fromkeys(cell["mode"] for cell in cells):
        members = [cell for cell in cells if cell["mode"] == mode]
        x, x_lengths = error_bars([cell["draft_speedup"] for cell in members])
        y, y_lengths = error_bars([cell["retention"] for cell in members])
        axes.errorbar(
            x,
            y,
            xerr=x_lengths,
            yerr=y_lengths,
            linestyle="none",
            marker=MARKERS[mode],
            markersize=7,
            markeredgecolor="black",
            markerfacecolor=FILLS[mode],
            ecolor="0.7",
            elinewidth=0.8,
            label=mode,
            zorder=3,
        )
    frontier = sorted(
        (cell["draft_speedup"]["value"], cell["retention"]["value"]) for cell in cells if cell["frontier"]
    )
    axes.plot(*zip(*frontier), color="black", linestyle="--", linewidth=1, label="frontier", zorder=2)
    style_grid(axes, "both")
    axes.figure.legend(loc="outside lower center", ncols=5, frameon=False)


def _labels(axes: Any, cells: list[dict[str, Any]]) -> None:
    """Label the points, each label as near to the height of its point as the others allow."""
    labelled = [
        (cell, name)
        for cell, name in zip(cells, labels_of(cells))
        if len(cells) <= MAX_LABELLED or cell["frontier"] or cell["mode"] == "exact"
    ][: int(1 / LABEL_GAP)]
    labelled.sort(key=lambda pair: (pair[0]["retention"]["value"], pair[0]["draft_speedup"]["value"]))
    low, high = axes.get_ylim()
    wanted = [(cell["retention"]["value"] - low) / (high - low) for cell, _ in labelled]
    for (cell, name), height in zip(labelled, spread(wanted, LABEL_GAP)):
        axes.annotate(
            name + " *" * cell["frontier"],
            (cell["draft_speedup"]["value"], cell["retention"]["value"]),
            (1.04, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "0.55",
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: list[float], gap: float) -> list[float]:
    """Move increasing heights so that they are at least `gap` apart within [0, 1] (at most 1 / gap + 1 heights)."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else max(height, 0.0))
    ceiling = 1.0
    for i in range(len(heights) - 1, -1, -1):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    return heights
