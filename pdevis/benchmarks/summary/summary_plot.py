"""The plots of summaries: speed per method, quality or acceptance beside it, and one row per group below.

Made for print: methods are told apart by hatches and markers, never by colour alone. Error bars are 95 % intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import error_bars, new_figure, not_measured, save

HATCHES = {"target": "", "drafter": "..", "speculative": "///"}
SHADES = {"target": "0.55", "drafter": "0.9", "speculative": "0.75"}
MARKERS = {"target": "o", "drafter": "^", "speculative": "s"}
FILLS = {"target": "white", "drafter": "0.7", "speculative": "black"}
ROW = 0.12  # inches per group and method


def draw_summary(summary: dict[str, Any], path: Path) -> None:
    """Draw what `summarize` returns into a PNG file, which is replaced as a whole. OSError where it cannot be."""
    save(plot_summary(summary), path)


def plot_summary(summary: dict[str, Any]) -> Any:
    """The matplotlib figure of a summary."""
    groups = {
        f"{key} {name}" if name.isdecimal() else name: each
        for key, group in summary["groups"].items()
        for name, each in group["by"].items()
    }
    methods = summary["methods"]
    metric = next((name for each in methods.values() for name in each.get("quality", {})), None)
    lanes = len(methods) if metric else 1
    below = 1.0 + len(groups) * (0.12 + lanes * ROW) if groups else 0.0
    figure = new_figure(10, 3.6 + below)
    parts = [figure] if not groups else figure.subfigures(2, 1, height_ratios=(3.6, below))
    speed, beside = parts[0].subplots(1, 2)
    _bars(speed, {name: each.get("tokens_per_second") for name, each in methods.items()}, "speed (tokens/s)")
    if metric:
        _bars(
            beside,
            {name: each.get("quality", {}).get(metric) for name, each in methods.items()},
            f"{metric} (mean over questions)",
        )
    else:
        found = summary["headline"].get("acceptance_rate")
        _bars(beside, {"speculative": found} if found else {}, "acceptance rate (%)", 100)
    if groups:
        left, right = parts[1].subplots(1, 2, sharey=True)
        _group_rows(left, right, groups, list(methods), metric)
    state = "PARTIAL, " if summary["partial"] else ""
    answered = summary["items"] - summary["errors"]
    figure.suptitle(f"{summary['benchmark']}: {state}{answered} questions, 95 % bootstrap intervals", fontsize=11)
    return figure


def _bars(axes: Any, figures: dict[str, dict[str, Any] | None], label: str, scale: float = 1) -> None:
    figures = {name: each for name, each in figures.items() if each is not None}
    axes.set_ylabel(label)
    if not figures:
        not_measured(axes)
        return
    values, lengths = error_bars(list(figures.values()), scale)
    places = range(len(figures))
    axes.bar(
        places,
        values,
        width=0.6,
        yerr=lengths,
        capsize=5,
        edgecolor="black",
        color=[SHADES[name] for name in figures],
        hatch=[HATCHES[name] for name in figures],
    )
    for place, value, up in zip(places, values, lengths[1]):
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        axes.annotate(text, (place, value + up), (0, 3), textcoords="offset points", ha="center", va="bottom")
    axes.set_xticks(list(places), list(figures))
    axes.set_xlim(min(-0.7, len(figures) / 2 - 2), max(len(figures) - 0.3, len(figures) / 2 + 1))
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="0.88")
    top = max(value + up for value, up in zip(values, lengths[1]))
    bottom = min(0.0, *(value - down for value, down in zip(values, lengths[0])))
    axes.set_ylim(bottom, bottom + (top - bottom) * 1.15 if top > bottom else 1)


def _group_rows(left: Any, right: Any, groups: dict[str, Any], methods: list[str], metric: str | None) -> None:
    """One row per group: quality and speed ratio, or speed ratio and tokens per round where there is no quality."""
    if metric:
        columns = {
            method: [each["methods"].get(method, {}).get("quality", {}).get(metric) for each in groups.values()]
            for method in methods
        }
        _dots(left, columns, f"{metric} (mean over questions)")
        if all(0 <= each["value"] <= 1 for column in columns.values() for each in column if each):
            left.set_xlim(-0.04, 1.04)
        _legend(left, len(columns))
    ratio = {"speculative": [each.get("speculative_over_target_speed") for each in groups.values()]}
    speed = right if metric else left
    _dots(speed, ratio, "speed, speculative / target")
    if any(ratio["speculative"]):
        speed.axvline(1, color="0.4", linestyle="--", linewidth=1)
    if not metric:
        lengths = {"speculative": [each.get("mean_accepted_length") for each in groups.values()]}
        _dots(right, lengths, "mean accepted length (tokens per round)")
    left.set_yticks(range(len(groups)), [f"{name} ({each['items']})" for name, each in groups.items()], fontsize=8)
    left.set_ylim(len(groups) - 0.4, -0.6)
    for axes in (left, right):
        for place in range(1, len(groups)):
            axes.axhline(place - 0.5, color="0.93", linewidth=0.8, zorder=0)


def _dots(axes: Any, columns: dict[str, list[dict[str, Any] | None]], label: str) -> None:
    axes.set_xlabel(label)
    if not any(each for figures in columns.values() for each in figures):
        not_measured(axes)
        return
    step = 0.6 / max(1, len(columns))
    for lane, (method, figures) in enumerate(columns.items()):
        values, lengths = error_bars(figures)
        axes.errorbar(
            values,
            [place + (lane - (len(columns) - 1) / 2) * step for place in range(len(figures))],
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
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)


def _legend(axes: Any, columns: int) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=8)
