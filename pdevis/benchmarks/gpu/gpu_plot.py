"""Plot a result of evaluate_gpu.py: draft steps against their floor, and pairs' speeds over plain decoding by γ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.benchmarks.gpu.gpu_report import SYNTHETIC, parts_of
from pdevis.util.plotting import SMALL_FONT, mark_not_measured, new_figure, save, style_grid

SHADES = ("white", "0.85", "0.6", "0.4", "0.2")
MARKERS = "os^Dvp<>"
WIDTH, ROW_HEIGHT, MARGIN = 12, 0.3, 2.2  # inches


def draw_gpu(result: dict[str, Any], path: Path) -> None:
    """Draw a result into a PNG file. Raises OSError if it cannot be written."""
    save(plot_gpu(result), path)


def plot_gpu(result: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a result."""
    drafters = parts_of(result, "drafter")
    bars = sum(len(part["steps"]) + 1 for part in drafters.values())
    figure = new_figure(WIDTH, max(4.5, MARGIN + ROW_HEIGHT * bars))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(f"{result['device']}, random weights, {result['date'][:10]}", fontsize=11)
    _draw_steps(left, drafters)
    _draw_pairs(right, parts_of(result, "pair"))
    return figure


def _draw_steps(axes: Any, drafters: dict[str, dict[str, Any]]) -> None:
    axes.set_xlabel("ms per draft token (dashed: bytes of weights / bandwidth)")
    if not drafters:
        mark_not_measured(axes)
        return
    names, y = [], 0
    longest = max(step["ms"] for part in drafters.values() for step in part["steps"].values())
    for key, part in drafters.items():
        first = y
        for shade, (name, step) in zip(SHADES, part["steps"].items()):
            axes.barh(y, step["ms"], color=shade, edgecolor="black", linewidth=0.8)
            axes.annotate(f"{step['ms']:.2f}", (step["ms"], y), (4, 0), textcoords="offset points", va="center")
            names.append((y, f"{key}, {name}"))
            y += 1
        axes.vlines(part["floor_ms"], first - 0.5, y - 0.5, color="black", linestyle="--", linewidth=1)
        y += 1
    axes.set_yticks([place for place, _ in names], [name for _, name in names], fontsize=SMALL_FONT)
    axes.set_ylim(y - 1.4, -0.6)
    axes.set_xlim(0, 1.15 * longest)
    style_grid(axes, "x")


def _draw_pairs(axes: Any, pairs: dict[str, dict[str, Any]]) -> None:
    axes.set_xlabel("γ (draft tokens per round)")
    axes.set_ylabel("speed over plain decoding")
    if not pairs:
        mark_not_measured(axes)
        return
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, part in pairs.items():
        for row in part["rows"]:
            label = f"{name}, {row['mode']}, β = {row['acceptance']:g}"
            lines.setdefault(label, []).append((row["gamma"], row["over_plain"]))
    for number, (label, points) in enumerate(lines.items()):
        dash = ("-", "--", ":", "-.")[number % 4]
        axes.plot(
            *zip(*sorted(points)), marker=MARKERS[number % len(MARKERS)], linestyle=dash, color="black", label=label
        )
    axes.axhline(1, color="0.6", linewidth=1)
    axes.set_title(SYNTHETIC, fontsize=SMALL_FONT)
    axes.legend(fontsize=SMALL_FONT - 1, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    style_grid(axes, "both")
