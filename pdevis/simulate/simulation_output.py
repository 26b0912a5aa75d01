"""Output of a simulation: the table on stdout, and the plot of speedups as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pdevis.simulate.simulation import Limits, Simulation, SimulationRow
from pdevis.util.console import MISSING, format_number, make_table, print_lines
from pdevis.util.plotting import new_figure, save, style_grid

COLUMNS = (
    "devices",
    "τ",
    "lanes",
    "draft step ms",
    "draft x exact",
    "end-to-end x plain",
    "x exact",
    "target idle ms",
    "drafter idle ms",
    "depth",
    "acceptance",
)
LEGEND = (
    "x exact: over exact on one device without overlap; lanes: attention + MLP; idle: ms per round in which the target "
    "waits for drafts, in which the drafter does nothing or what is thrown away; depth: serial sublayer steps a token"
)
CURVES = {  # field of `SimulationRow`: label, marker, line style
    "draft_speedup": ("draft, over exact on one device", "s", "-"),
    "speedup_over_exact": ("end-to-end, over exact on one device", "o", "--"),
    "speedup_over_plain": ("end-to-end, over plain decoding", "^", ":"),
}


# ---- table ----


def show_simulation(console: Console, simulation: Simulation) -> None:
    """Print the table, the limits, and the assumptions."""
    notes = list(dict.fromkeys(row.note for row in simulation.rows if row.note))
    print_lines(console, _head_lines(simulation))
    console.print(make_table(COLUMNS, [_cells(row, notes) for row in simulation.rows]))
    print_lines(console, [LEGEND, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])
    print_lines(console, _limit_lines(simulation.limits))
    print_lines(console, [f"assumed: {assumption}" for assumption in simulation.assumptions])


def _head_lines(simulation: Simulation) -> list[str]:
    """Return the recorded runs and the costs used."""
    costs = simulation.costs
    traces = "; ".join(
        f"{trace.file} ({trace.rule}, {trace.rounds} rounds, {trace.steps} draft steps)" for trace in simulation.traces
    )
    target = ", ".join(f"{ms:.2f} ({width})" for width, ms in costs.target_ms.items())
    parts = " / ".join(f"{ms:.3f}" for ms in (costs.attention_ms, costs.mlp_ms, costs.head_ms))
    repeated = f"; {costs.repeated_ms:.3f} of an MLP are repeated on each device" if costs.repeated_ms else ""
    return [
        f"simulated: {_mode(simulation)}, on the rounds of {traces}",
        f"an exact draft step takes {costs.draft_ms:.2f} ms ({costs.draft_from}), of which an attention, an MLP, "
        f"the head {parts}; each further token adds {costs.token_ms:.3f}{repeated}",
        f"a target forward takes ms (tokens): {target} ({costs.target_from})",
    ]


def _limit_lines(limits: Limits) -> list[str]:
    note = f" ({limits.note})" if limits.note else ""
    return [
        f"limits, from exact on one device, {limits.exact_over_plain:.2f}x plain decoding{note}: of a round of "
        f"{limits.draft_ms_per_round:.1f} + {limits.verify_ms_per_round:.1f} ms drafting is "
        f"f = {limits.draft_share:.3f}",
        f"a drafter that takes no time gains 1/(1-f) = {limits.amdahl:.2f}x over that; overlap at its best "
        f"(draft + verify) / max(draft, verify) = {limits.perfect_overlap:.2f}x, and never more than 2x",
    ]


def _cells(row: SimulationRow, notes: Sequence[str]) -> tuple[str, ...]:
    acceptance = format_number(row.acceptance_rate, 2)
    return (
        str(row.devices),
        MISSING if row.threshold is None else f"{row.threshold:g}",
        f"{row.attention_window} + {row.mlp_window}" if row.attention_window else MISSING,
        format_number(row.draft_step_ms, 2),
        format_number(row.draft_speedup, 2),
        format_number(row.speedup_over_plain, 2),
        format_number(row.speedup_over_exact, 2),
        format_number(row.target_idle_ms, 2),
        format_number(row.drafter_idle_ms, 2),
        format_number(row.serial_depth, 1),
        f"{acceptance} [{notes.index(row.note) + 1}]" if row.note else f"{acceptance} measured",
    )


def _mode(simulation: Simulation) -> str:
    return f"{simulation.mode}{', overlap' if simulation.overlap else ''}"


# ---- plot ----


def save_plot(simulation: Simulation, path: Path) -> None:
    """Write the plot as a PNG file, whole or not at all. Raises OSError if it cannot be written."""
    save(plot_simulation(simulation), path)


def plot_simulation(simulation: Simulation) -> Any:
    """Return a matplotlib figure of speedups: the first threshold by devices, and all thresholds on most devices.

    Made for print: markers and line styles tell the curves apart. A hollow marker means that the acceptance was not
    measured under this rule.
    """
    rows = simulation.rows
    threshold, most_devices = rows[0].threshold, max(row.devices for row in rows)
    figure = new_figure(10, 4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_curves(left, [row for row in rows if row.threshold == threshold], "devices")
    left.set_xlabel("devices of the drafter")
    left.set_ylabel("speedup")
    left.set_title("" if threshold is None else f"τ = {threshold:g}", fontsize=10)
    right.set_xlabel("threshold τ")
    if threshold is None:
        right.text(0.5, 0.5, "no threshold", ha="center", va="center", transform=right.transAxes)
        right.set_xticks([])
    else:
        _draw_curves(right, [row for row in rows if row.devices == most_devices], "threshold")
        right.set_title(f"{most_devices} device{'s' * (most_devices > 1)}", fontsize=10)
    speedups = [getattr(row, field) for row in rows for field in CURVES]
    highest = max(speedup for speedup in speedups if speedup is not None)
    left.set_ylim(0, 1.08 * max(1, highest))  # of both axes
    files = ", ".join(trace.file for trace in simulation.traces)
    figure.suptitle(f"Simulated from {files}: {_mode(simulation)}", fontsize=11)
    _draw_legend(figure, all_measured=all(row.acceptance_measured for row in rows))
    return figure


def _draw_curves(axes: Any, rows: Sequence[SimulationRow], x_field: str) -> None:
    rows = sorted(rows, key=lambda row: getattr(row, x_field))
    xs = [getattr(row, x_field) for row in rows]
    for field, (_, marker, line) in CURVES.items():
        ys = [getattr(row, field) for row in rows]
        axes.plot(xs, ys, color="0.3", linestyle=line, linewidth=1, zorder=2)
        for row, x, y in zip(rows, xs, ys, strict=True):
            if y is not None:
                fill = "black" if row.acceptance_measured or field == "draft_speedup" else "white"
                axes.plot(x, y, marker=marker, markersize=6, color="black", markerfacecolor=fill, zorder=3)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.axhline(1, color="0.4", linewidth=0.8, zorder=1)
    style_grid(axes, "both")


def _draw_legend(figure: Any, *, all_measured: bool) -> None:
    from matplotlib.lines import Line2D

    style = {"color": "black", "linewidth": 1, "markersize": 6}
    handles = [
        Line2D([], [], marker=marker, linestyle=line, label=label, **style) for label, marker, line in CURVES.values()
    ]
    if not all_measured:
        label = "hollow: acceptance not measured here"
        handles.append(Line2D([], [], marker="o", linestyle="none", markerfacecolor="white", label=label, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
