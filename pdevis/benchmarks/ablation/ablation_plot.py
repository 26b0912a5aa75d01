"""Pareto plots of an ablation: retention against draft speedup and against serial depth, with a number per cell.

The numbers stand at the points, and a list at the right says what they mean. In a large grid only `exact`, static cells
and the cells on the frontier have numbers: the table names all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import SMALL_FONT, error_bars, label_points, mark_not_measured, new_figure, save, style_grid

MARKERS = {"exact": "o", "skip": "^", "parallel": "s", "skip static": "v", "parallel static": "D"}
FILLS = {"exact": "white", "skip": "0.7", "parallel": "black", "skip static": "white", "parallel static": "0.85"}
SHORT = {"threshold": "τ", "target_retention": "target ", "window": "W", "gamma": "γ"}
MAX_NUMBERED = 24  # cells, of which all have a number
HEIGHT_INCHES = 5.5


def kind_of(cell: dict[str, Any]) -> str:
    """Return the mode of a cell, with "static" if its schedule is fixed."""
    return f"{cell['mode']} static" if cell["check"] == "static" else cell["mode"]


def labels_of(cells: list[dict[str, Any]]) -> list[str]:
    """Short name of each cell: its mode, and the settings that differ between the cells that have them."""

    def values(cell: dict[str, Any]) -> dict[str, Any]:
        return {name: cell[name] for name in ("check", *SHORT) if cell.get(name) not in (None, "static")}

    varying = {name for name in ("check", *SHORT) if len({values(cell).get(name) for cell in cells} - {None}) > 1}
    names = []
    for cell in cells:
        given = [SHORT.get(name, "") + shown(value) for name, value in values(cell).items() if name in varying]
        file = [Path(cell["corrections"]).name] if cell.get("corrections") else []
        names.append(" ".join([kind_of(cell), *given, *file]))
    return names


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_grid(summary: dict[str, Any], path: Path) -> None:
    """Draw the result of `summarize_grid` into a PNG file, atomically. Raises OSError if it cannot be written."""
    save(plot_grid(summary), path)


def plot_grid(summary: dict[str, Any]) -> Any:
    """The matplotlib figure of an ablation."""
    cells = [cell for cell in summary["cells"] if "draft_speedup" in cell and "retention" in cell]
    figure = new_figure(12, HEIGHT_INCHES)
    by_speed, by_depth = figure.subplots(1, 2, sharey=True)
    by_speed.set_xlabel("draft speedup (draft tokens/s over exact)")
    by_depth.set_xlabel("serial depth (exact over this cell)")
    by_speed.set_ylabel("retention (acceptance rate over exact)")
    state = "PARTIAL, " if summary["partial"] else ""
    title = f"{summary['benchmark']} ablation: {state}{summary['items']} questions, 95 % bootstrap intervals"
    figure.suptitle(title, fontsize=11)
    if cells:
        _points(by_speed, cells, [cell["draft_speedup"] for cell in cells], "frontier")
        _points(by_depth, cells, _depth_ratios(cells), None)
        figure.legend(*by_speed.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        _list_numbers(by_depth, cells)
        _number_points(by_speed, cells, [cell["draft_speedup"] for cell in cells])
        _number_points(by_depth, cells, _depth_ratios(cells))
    else:
        mark_not_measured(by_speed)
        mark_not_measured(by_depth)
    return figure


def _depth_ratios(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the serial depth of exact over that of each cell, without intervals."""
    exact = next(cell["serial_depth"]["value"] for cell in cells if cell["mode"] == "exact")
    ratios = [exact / cell["serial_depth"]["value"] for cell in cells]
    return [{"value": ratio, "low": ratio, "high": ratio} for ratio in ratios]


def _points(axes: Any, cells: list[dict[str, Any]], positions: list[dict[str, Any]], frontier: str | None) -> None:
    """Draw a point per cell, and the frontier under this label."""
    for kind in dict.fromkeys(map(kind_of, cells)):
        members = [(cell, position) for cell, position in zip(cells, positions) if kind_of(cell) == kind]
        x, x_lengths = error_bars([position for _, position in members])
        y, y_lengths = error_bars([cell["retention"] for cell, _ in members])
        axes.errorbar(
            x,
            y,
            xerr=x_lengths,
            yerr=y_lengths,
            linestyle="none",
            marker=MARKERS[kind],
            markersize=7,
            markeredgecolor="black",
            markerfacecolor=FILLS[kind],
            ecolor="0.7",
            elinewidth=0.8,
            label=kind,
            zorder=3,
        )
    if frontier:
        members = [(cell, position) for cell, position in zip(cells, positions) if cell["frontier"]]
        line = sorted((position["value"], cell["retention"]["value"]) for cell, position in members)
        axes.plot(*zip(*line), color="black", linestyle="--", linewidth=1, label=frontier, zorder=2)
    style_grid(axes, "both")


def is_numbered(cell: dict[str, Any], cells: list[dict[str, Any]]) -> bool:
    """Return True if a cell has a number in the plot."""
    important = cell["frontier"] or cell["mode"] == "exact" or cell["check"] == "static"
    return len(cells) <= MAX_NUMBERED or important


def _number_points(axes: Any, cells: list[dict[str, Any]], positions: list[dict[str, Any]]) -> None:
    """Write the numbers of the cells next to their points."""
    label_points(
        axes,
        [
            (str(number), (position["value"], cell["retention"]["value"]))
            for number, (cell, position) in enumerate(zip(cells, positions), 1)
            if is_numbered(cell, cells)
        ],
    )


def _list_numbers(axes: Any, cells: list[dict[str, Any]]) -> None:
    """List what the numbers mean, at the right of the axes."""
    lines = [
        f"{number}  {name}" + " *" * cell["frontier"]
        for number, (cell, name) in enumerate(zip(cells, labels_of(cells)), 1)
        if is_numbered(cell, cells)
    ]
    text = "\n".join(lines[: 2 * MAX_NUMBERED])
    axes.annotate(text, (1.03, 1), xycoords="axes fraction", va="top", fontsize=SMALL_FONT, annotation_clip=False)
