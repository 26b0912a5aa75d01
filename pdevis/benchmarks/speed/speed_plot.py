"""The plot of speed comparisons: tokens/s of every decoder, and beside it where the time of a round goes.

Made for print: shades and hatches tell the parts apart, never colour alone. Error bars are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdevis.benchmarks.speed.baselines import GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.util.labels import format_models
from pdevis.util.plotting import error_bars, new_figure, not_measured

SHADES = {"plain": "0.55", "speculative": "0.75", "peer": "white"}
HATCHES = {"plain": "", "speculative": "///", "peer": ""}
KINDS = {"plain": "pdevis, target alone", "speculative": "pdevis, speculative", "peer": "other libraries"}
PARTS = {"draft": ("0.85", "///"), "verify": ("0.55", ""), "rest": ("white", "...")}
LABEL_CHARACTERS = 0.085  # inches that a character of a label takes
ROW = 0.34  # inches per decoder
AROUND = 1.75  # inches per input for titles, axes and legends


def plot_speed(runs: Sequence[dict[str, Any]]) -> Any:
    """The matplotlib figure of what `load_speed` returns, inputs one below the other."""
    heights = [AROUND + ROW * max(4, len(run["rows"])) for run in runs]
    longest = max(len(row["name"]) for run in runs for row in run["rows"])
    figure = new_figure(8.5 + LABEL_CHARACTERS * longest, sum(heights))
    parts = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, run in zip(parts, runs, strict=True):
        speed, rounds = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _speeds(speed, run["rows"])
        _rounds(rounds, run["rows"])
        part.suptitle(_title(run), fontsize=11)
    return figure


def _title(run: dict[str, Any]) -> str:
    length = run["settings"].get("length")
    pair = {key: str(value).rstrip("/").split("/")[-1] for key, value in (run["pair"] or {}).items()}
    models = ", ".join(format_models({key: value for key, value in pair.items() if not key.endswith("_device")}))
    state = "PARTIAL, " if run["partial"] else ""
    return f"{models}\n{state}{run['prompts']} prompts x {length} tokens, greedy; 95 % bootstrap intervals"


def _speeds(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    values, lengths = error_bars([row["tokens_per_second"] for row in rows])
    places = range(len(rows))
    axes.barh(
        places,
        values,
        height=0.62,
        xerr=lengths,
        capsize=3,
        edgecolor="black",
        color=[SHADES[row["kind"]] for row in rows],
        hatch=[HATCHES[row["kind"]] for row in rows],
        error_kw={"elinewidth": 1},
    )
    base = GENERATE if any(row["name"] == GENERATE for row in rows) else PLAIN
    for place, (row, value, up) in enumerate(zip(rows, values, lengths[1], strict=True)):
        ratio = row["over"].get(base)
        text = f"{value:.3g}" + (f" ({ratio['ratio']['value']:.2f}x)" if ratio else "")
        axes.annotate(text, (value + up, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(list(places), [row["name"] for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.28 * max(value + up for value, up in zip(values, lengths[1], strict=True)))
    axes.set_xlabel(f"tokens/s, prompt included (in brackets: over {base.removeprefix('pdevis, ')})")
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    _legend(axes, [(KINDS[kind], SHADES[kind], HATCHES[kind]) for kind in kinds])


def _rounds(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_xlabel("a round's time (ms)")
    axes.tick_params(labelleft=False)
    ours = [(place, row["round_ms"]) for place, row in enumerate(rows) if row.get("round_ms")]
    if not ours:
        not_measured(axes)
        return
    left = [0.0] * len(ours)
    for part, (shade, hatch) in PARTS.items():
        widths = [max(0.0, times[part]) for _, times in ours]
        axes.barh(
            [place for place, _ in ours],
            widths,
            left=left,
            height=0.62,
            color=shade,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.8,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for (place, _), end in zip(ours, left, strict=True):
        axes.annotate(
            _per_round(rows[place]), (end, place), (5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlim(0, 1.42 * max(left))
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    _legend(axes, [(part, *style) for part, style in PARTS.items()])


def _per_round(row: dict[str, Any]) -> str:
    length = row.get("mean_accept_length", 1)
    return f"{length:.2f} tokens" if length != 1 else "1 token"


def _legend(axes: Any, parts: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=shade, hatch=hatch, edgecolor="black", label=name) for name, shade, hatch in parts]
    axes.legend(
        handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts), frameon=False, fontsize=8
    )
