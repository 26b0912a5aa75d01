"""Plot a summary: speed per method, quality or acceptance to its right, and one row per group below.

Methods are told apart by hatches and markers, never by colour alone. Error bars are 95 % intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import SMALL_FONT, error_bars, mark_not_measured, new_figure, save, style_grid

HATCHES = {"target": "", "drafter": "..", "speculative": "///"}
SHADES = {"target": "0.55", "drafter": "0.9", "speculative": "0.75"}
MARKERS = {"target": "o", "drafter": "^", "speculative": "s"}
FILLS = {"target": "white", "drafter": "0.7", "speculative": "black"}
WIDTH, BARS_HEIGHT = 10, 3.6  # inches, of the figure and of the bars at its top
ROW_HEIGHT = 0.12  # inches per group and method, and between groups

Intervals = dict[str, dict[str, Any] | None]  # by method


def draw_summary(summary: dict[str, Any], path: Path) -> None:
    """Draw what `summarize` returns into a PNG file. Raises OSError if it cannot be written."""
    save(plot_summary(summary), path)


def plot_summary(summary: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a summary."""
    groups = {
        f"{key} {name}" if name.isdecimal() else name: member
        for key, group in summary["groups"].items()
        for name, member in group["by"].items()
    }
    methods = summary["methods"]
    score = next((name for result in methods.values() for name in result.get("quality", {})), None)
    rows_per_group = len(methods) if score else 1
    groups_height = 1.0 + len(groups) * (1 + rows_per_group) * ROW_HEIGHT if groups else 0.0
    figure = new_figure(WIDTH, BARS_HEIGHT + groups_height)
    parts = [figure] if not groups else figure.subfigures(2, 1, height_ratios=(BARS_HEIGHT, groups_height))
    left, right = parts[0].subplots(1, 2)
    _draw_bars(left, {name: result.get("tokens_per_second") for name, result in methods.items()}, "speed (tokens/s)")
    if score:
        qualities = {name: result.get("quality", {}).get(score) for name, result in methods.items()}
        _draw_bars(right, qualities, f"{score} (mean over questions)")
    else:
        acceptance = {"speculative": summary["headline"].get("acceptance_rate")}
        _draw_bars(right, acceptance, "acceptance rate (%)", 100)
    if groups:
        left, right = parts[1].subplots(1, 2, sharey=True)
        _draw_groups(left, right, groups, list(methods), score)
    state = "PARTIAL, " if summary["partial"] else ""
    answered = summary["items"] - summary["errors"]
    figure.suptitle(f"{summary['benchmark']}: {state}{answered} questions, 95 % bootstrap intervals", fontsize=11)
    return figure


def _draw_bars(axes: Any, intervals: Intervals, label: str, scale: float = 1) -> None:
    """Draw one bar per method that was measured, with its value above it."""
    measured = {name: interval for name, interval in intervals.items() if interval is not None}
    axes.set_ylabel(label)
    if not measured:
        mark_not_measured(axes)
        return
    values, (down, up) = error_bars(list(measured.values()), scale)
    count = len(measured)
    axes.bar(
        range(count),
        values,
        width=0.6,
        yerr=[down, up],
        capsize=5,
        edgecolor="black",
        color=[SHADES[name] for name in measured],
        hatch=[HATCHES[name] for name in measured],
    )
    for x, (value, length) in enumerate(zip(values, up, strict=True)):
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        axes.annotate(text, (x, value + length), (0, 3), textcoords="offset points", ha="center", va="bottom")
    axes.set_xticks(range(count), list(measured))
    axes.set_xlim(min(-0.7, count / 2 - 2), max(count - 0.3, count / 2 + 1))
    style_grid(axes, "y")
    top = max(value + length for value, length in zip(values, up, strict=True))
    bottom = min(0.0, *(value - length for value, length in zip(values, down, strict=True)))
    axes.set_ylim(bottom, bottom + (top - bottom) * 1.15 if top > bottom else 1)


def _draw_groups(left: Any, right: Any, groups: dict[str, Any], methods: list[str], score: str | None) -> None:
    """Draw one row per group: quality and speed ratio, or speed ratio and tokens per round if there is no quality."""
    members = list(groups.values())
    ratios = [group.get("speculative_over_target_speed") for group in members]
    if score:
        qualities = {
            method: [group["methods"].get(method, {}).get("quality", {}).get(score) for group in members]
            for method in methods
        }
        _draw_dots(left, qualities, f"{score} (mean over questions)")
        if all(0 <= quality["value"] <= 1 for column in qualities.values() for quality in column if quality):
            left.set_xlim(-0.04, 1.04)
        left.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(qualities), frameon=False, fontsize=SMALL_FONT
        )
    else:
        lengths = {"speculative": [group.get("mean_accepted_length") for group in members]}
        _draw_dots(right, lengths, "mean accepted length (tokens per round)")
    speed = right if score else left
    _draw_dots(speed, {"speculative": ratios}, "speed, speculative / target")
    if any(ratios):
        speed.axvline(1, color="0.4", linestyle="--", linewidth=1)
    names = [f"{name} ({group['items']})" for name, group in groups.items()]
    left.set_yticks(range(len(groups)), names, fontsize=SMALL_FONT)
    left.set_ylim(len(groups) - 0.4, -0.6)
    for axes in (left, right):
        for y in range(1, len(groups)):
            axes.axhline(y - 0.5, color="0.93", linewidth=0.8, zorder=0)


def _draw_dots(axes: Any, columns: dict[str, list[dict[str, Any] | None]], label: str) -> None:
    """Draw one dot per method and group; `columns` has an interval per group for each method."""
    axes.set_xlabel(label)
    if not any(interval for column in columns.values() for interval in column):
        mark_not_measured(axes)
        return
    step = 0.6 / max(1, len(columns))
    for number, (method, column) in enumerate(columns.items()):
        values, lengths = error_bars(column)
        offset = (number - (len(columns) - 1) / 2) * step
        axes.errorbar(
            values,
            [y + offset for y in range(len(column))],
            xerr=lengths,
            linestyle="none",
            marker=MARKERS[method],
            markersize=4.5,
            markeredgecolor="black",
            markerfacecolor=FILLS[method],
            ecolor="0.35",
            elinewidth=0.9,
            capsize=2,
            label=method,
        )
    style_grid(axes, "x")
