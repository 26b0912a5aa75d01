"""The plot of a simulation: speedup against devices, and against the threshold.

Made for print: curves are told apart by markers and line styles. Hollow: that acceptance was not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.util.plotting import new_figure, save

CURVES = {
    "draft_speedup": ("draft, over exact on one device", "s", "-"),
    "speedup_over_exact": ("end-to-end, over exact on one device", "o", "--"),
    "speedup_over_plain": ("end-to-end, over plain decoding", "^", ":"),
}


def draw_simulation(result: dict[str, Any], path: Path) -> None:
    """Draw what `simulate` returns into a PNG file, which is replaced as a whole. OSError where it cannot be."""
    save(plot_simulation(result), path)


def plot_simulation(result: dict[str, Any]) -> Any:
    """The matplotlib figure: the first threshold on all devices, all thresholds on most devices."""
    rows = result["rows"]
    threshold, most = rows[0]["threshold"], max(row["devices"] for row in rows)
    figure = new_figure(10, 4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    _curves(left, [row for row in rows if row["threshold"] == threshold], "devices")
    left.set_xlabel("devices of the drafter")
    left.set_ylabel("speedup")
    left.set_title("" if threshold is None else f"τ = {threshold:g}", fontsize=10)
    right.set_xlabel("threshold τ")
    if threshold is None:
        right.text(0.5, 0.5, "exact has no threshold", ha="center", va="center", transform=right.transAxes)
        right.set_xticks([])
    else:
        _curves(right, [row for row in rows if row["devices"] == most], "threshold")
        right.set_title(f"{most} device{'s' * (most > 1)}", fontsize=10)
    highest = max(row[key] for row in rows for key in CURVES if row[key] is not None)
    left.set_ylim(0, 1.08 * max(1, highest))  # of both
    how = f"{result['mode']}{', overlap' if result['overlap'] else ''}"
    files = ", ".join(each["file"] for each in result["traces"])
    figure.suptitle(f"Simulated from {files}: {how}", fontsize=11)
    _legend(figure, rows)
    return figure


def _curves(axes: Any, rows: list[dict[str, Any]], name: str) -> None:
    rows = sorted(rows, key=lambda row: row[name])
    places = [row[name] for row in rows]
    for key, (_, marker, line) in CURVES.items():
        axes.plot(places, [row[key] for row in rows], color="0.3", linestyle=line, linewidth=1, zorder=2)
        for row in rows:
            if row[key] is not None:
                fill = "black" if row["acceptance_measured"] or key == "draft_speedup" else "white"
                axes.plot(
                    row[name], row[key], marker=marker, markersize=6, color="black", markerfacecolor=fill, zorder=3
                )
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.axhline(1, color="0.4", linewidth=0.8, zorder=1)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _legend(figure: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    style = {"color": "black", "linewidth": 1, "markersize": 6}
    handles = [
        Line2D([], [], marker=marker, linestyle=line, label=label, **style) for label, marker, line in CURVES.values()
    ]
    if not all(row["acceptance_measured"] for row in rows):
        label = "hollow: acceptance not measured here"
        handles.append(Line2D([], [], marker="o", linestyle="none", markerfacecolor="white", label=label, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
