"""The Pareto plot of an ablation: draft speedup against retention, a point per cell, and the frontier.

Labels stand in a column at the right, each with a line to its point, so that they cannot overlap however the points
lie. In a large grid only `exact` and the frontier are named: the table names them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import error_bars, mark_not_measured, new_figure, save, style_grid

MARKERS = {"exact": "o", "skip": "^", "parallel": "s"}
FILLS = {"exact": "white", "skip": "0.7", "parallel": "black"}
SHORT = {"threshold": "τ", "window": "W", "gamma": "γ"}
ALL_NAMED = 16  # cells: in a larger grid the lines from the labels to the points would be a tangle
HEIGHT, GAP = 5.5, 0.045  # of the figure in inches; between labels as a share of the axes


def labels_of(cells: list[dict[str, Any]]) -> list[str]:
    """A short name per cell: its mode, and those settings that are not the same in all cells that have them."""
    varying = [name for name in ("check", *SHORT) if len({cell[name] for cell in cells if cell[name] is not None}) > 1]
    names = []
    for cell in cells:
        given = [(name, cell[name]) for name in varying if cell[name] is not None]
        names.append(" ".join([cell["mode"], *(SHORT.get(name, "") + shown(value) for name, value in given)]))
    return names


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_grid(summary: dict[str, Any], path: Path) -> None:
    """Draw what `summarize_grid` returns into a PNG file, which is replaced as a whole. OSError where it cannot be."""
    save(plot_grid(summary), path)


def plot_grid(summary: dict[str, Any]) -> Any:
    """The matplotlib figure of an ablation."""
    cells = [cell for cell in summary["cells"] if "draft_speedup" in cell and "retention" in cell]
    figure = new_figure(10, HEIGHT)
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
    """Each as near to its point's height as the others allow."""
    chosen = [
        (cell, name)
        for cell, name in zip(cells, labels_of(cells))
        if len(cells) <= ALL_NAMED or cell["frontier"] or cell["mode"] == "exact"
    ][: int(1 / GAP)]
    chosen.sort(key=lambda each: (each[0]["retention"]["value"], each[0]["draft_speedup"]["value"]))
    low, high = axes.get_ylim()
    wanted = [(cell["retention"]["value"] - low) / (high - low) for cell, _ in chosen]
    for (cell, name), height in zip(chosen, spread(wanted, GAP)):
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
    """Rising heights in [0, 1], at least `gap` apart, near the rising ones wanted (at most 1 / gap + 1 of them)."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap) if heights else max(height, 0.0))
    ceiling = 1.0
    for place in range(len(heights) - 1, -1, -1):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - gap
    return heights
