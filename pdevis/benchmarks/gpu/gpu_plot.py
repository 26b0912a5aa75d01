"""Plot a result of evaluate_gpu.py: draft steps against their floor, and pairs' speeds over plain decoding by γ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.benchmarks.gpu.gpu_report import SYNTHETIC, parts_of
from pdevis.util.plotting import SMALL_FONT, mark_not_measured, new_figure, save, style_grid

SHADES = ("white", "0.85", "0.6", "0.4", "0.2")
MARKERS, DASHES = {"exact": "o", "static": "D"}, ("--", "-", ":")
WIDTH, ROW_HEIGHT, PAIR_HEIGHT, MARGIN = 12, 0.3, 2.6, 2.2  # inches


def draw_gpu(result: dict[str, Any], path: Path) -> None:
    """Draw a result into a PNG file. Raises OSError if it cannot be written."""
    save(plot_gpu(result), path)


def plot_gpu(result: dict[str, Any]) -> Any:
    """Return the matplotlib figure of a result."""
    drafters, pairs = parts_of(result, "drafter"), parts_of(result, "pair")
    bars = sum(len(part["steps"]) + 1 for part in drafters.values())
    names = list(dict.fromkeys(name.partition(",")[0] for name in pairs)) or [""]
    figure = new_figure(WIDTH, max(PAIR_HEIGHT * len(names) + MARGIN, MARGIN + ROW_HEIGHT * bars))
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    figure.suptitle(f"{result['device']}, random weights, {result['date'][:10]}\n{SYNTHETIC}", fontsize=11)
    _draw_steps(left.subplots(), drafters)
    all_axes = right.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(all_axes, names):
        _draw_pairs(axes, name, {key: part for key, part in pairs.items() if key.partition(",")[0] == name})
    all_axes[-1].set_xlabel("γ (draft tokens per round)")
    if pairs:
        right.legend(
            *all_axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            fontsize=SMALL_FONT,
            handlelength=4,
        )
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


def _draw_pairs(axes: Any, name: str, parts: dict[str, dict[str, Any]]) -> None:
    """Draw a pair's speeds: markers by mode, filled with drafting ahead; lines by acceptance."""
    axes.set_ylabel("speed over plain decoding")
    axes.set_title(name, fontsize=SMALL_FONT + 1)
    if not parts:
        mark_not_measured(axes)
        return
    lines: dict[tuple[str, float, str], list[tuple[int, float]]] = {}
    for key, part in parts.items():
        for row in part["rows"]:
            setting = (row["mode"], row["acceptance"], key.partition(", ")[2])
            lines.setdefault(setting, []).append((row["gamma"], row["over_plain"]))
    acceptances = sorted({acceptance for _, acceptance, _ in lines})
    for (mode, acceptance, placement), points in lines.items():
        axes.plot(
            *zip(*sorted(points)),
            marker=MARKERS[mode],
            markerfacecolor="black" if placement else "white",
            linestyle=DASHES[acceptances.index(acceptance) % len(DASHES)],
            color="black",
            label=", ".join(filter(None, (mode, f"β = {acceptance:g}", placement))),
        )
    axes.axhline(1, color="0.6", linewidth=1)
    style_grid(axes, "both")
