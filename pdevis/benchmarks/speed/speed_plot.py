"""Plot speed comparisons: tokens/s of every decoder, and to the right how the time of a round is divided.

Shades and hatches tell the parts apart, never colour alone. Error bars are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdevis.benchmarks.speed.baselines import GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.speed_table import synthetic_lines
from pdevis.util.labels import format_models
from pdevis.util.plotting import SMALL_FONT, error_bars, mark_not_measured, new_figure, save, style_grid

# by kind of decoder or part of a round: shade, hatch
KIND_STYLES = {"plain": ("0.55", ""), "speculative": ("0.75", "///"), "peer": ("white", "")}
KIND_LABELS = {"plain": "pdevis, target alone", "speculative": "pdevis, speculative", "peer": "other libraries"}
PART_STYLES = {"draft": ("0.85", "///"), "verify": ("0.55", ""), "rest": ("white", "...")}
BAR_HEIGHT = 0.62  # fraction of a row
WIDTH = 8.5  # inches, without the names of the decoders
CHARACTER_WIDTH = 0.085  # inches per character of a decoder's name
ROW_HEIGHT = 0.34  # inches per decoder
MARGIN_HEIGHT = 1.75  # inches per input for titles, axes and legends
MIN_ROWS = 4


def draw_speed(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what `load_speed` returns into a PNG file. Raises OSError if it cannot be written."""
    save(plot_speed(runs), path)


def plot_speed(runs: Sequence[dict[str, Any]]) -> Any:
    """Return the matplotlib figure of several summaries, one below the other."""
    heights = [MARGIN_HEIGHT + ROW_HEIGHT * max(MIN_ROWS, len(run["rows"])) for run in runs]
    longest = max(len(row["name"]) for run in runs for row in run["rows"])
    figure = new_figure(WIDTH + CHARACTER_WIDTH * longest, sum(heights))
    parts = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, run in zip(parts, runs, strict=True):
        left, right = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _draw_speeds(left, run["rows"])
        _draw_rounds(right, run["rows"])
        part.suptitle(_title(run), fontsize=11)
    return figure


def _title(run: dict[str, Any]) -> str:
    """Return the models with their formats, but without folders and devices, and the prompts."""
    pair = {key: value for key, value in (run["pair"] or {}).items() if not key.endswith("_device")}
    for role in ("target", "drafter"):
        if role in pair:
            pair[role] = str(pair[role]).rstrip("/").split("/")[-1]
    state = "PARTIAL, " if run["partial"] else ""
    prompts = f"{state}{run['prompts']} prompts x {run['settings'].get('length')} tokens, greedy"
    lines = [", ".join(format_models(pair)), *synthetic_lines(run["settings"])]
    return "\n".join([*lines, f"{prompts}; 95 % bootstrap intervals"])


def _draw_speeds(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    values, lengths = error_bars([row["tokens_per_second"] for row in rows])
    ends = [value + length for value, length in zip(values, lengths[1], strict=True)]
    axes.barh(
        range(len(rows)),
        values,
        height=BAR_HEIGHT,
        xerr=lengths,
        capsize=3,
        edgecolor="black",
        color=[KIND_STYLES[row["kind"]][0] for row in rows],
        hatch=[KIND_STYLES[row["kind"]][1] for row in rows],
        error_kw={"elinewidth": 1},
    )
    base = GENERATE if any(row["name"] == GENERATE for row in rows) else PLAIN
    for y, (row, value, end) in enumerate(zip(rows, values, ends, strict=True)):
        over = row["over"].get(base)
        _label_bar(axes, end, y, f"{value:.3g}" + (f" ({over['ratio']['value']:.2f}x)" if over else ""))
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.28 * max(ends))
    axes.set_xlabel(f"tokens/s, prompt included (in brackets: over {base.removeprefix('pdevis, ')})")
    style_grid(axes, "x")
    kinds = dict.fromkeys(row["kind"] for row in rows)
    _draw_legend(axes, {KIND_LABELS[kind]: KIND_STYLES[kind] for kind in kinds})


def _draw_rounds(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_xlabel("a round's time (ms)")
    axes.tick_params(labelleft=False)
    measured = {y: row for y, row in enumerate(rows) if row.get("round_ms")}
    if not measured:
        mark_not_measured(axes)
        return
    starts = [0.0] * len(measured)
    for part, (shade, hatch) in PART_STYLES.items():
        widths = [max(0.0, row["round_ms"][part]) for row in measured.values()]
        axes.barh(
            list(measured),
            widths,
            left=starts,
            height=BAR_HEIGHT,
            color=shade,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.8,
        )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for (y, row), end in zip(measured.items(), starts, strict=True):
        length = row.get("mean_accept_length", 1)
        _label_bar(axes, end, y, f"{length:.2f} tokens" if length != 1 else "1 token")
    axes.set_xlim(0, 1.42 * max(starts))
    style_grid(axes, "x")
    _draw_legend(axes, PART_STYLES)


def _label_bar(axes: Any, end: float, y: int, text: str) -> None:
    axes.annotate(text, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=SMALL_FONT)


def _draw_legend(axes: Any, styles: dict[str, tuple[str, str]]) -> None:
    """Draw a legend above the axes; `styles` has shade and hatch of each label."""
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=shade, hatch=hatch, edgecolor="black", label=label) for label, (shade, hatch) in styles.items()
    ]
    axes.legend(
        handles=patches,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(patches),
        frameon=False,
        fontsize=SMALL_FONT,
    )
