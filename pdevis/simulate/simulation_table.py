"""The simulation as a reader sees it: a table, the limits, and what was assumed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pdevis.util.console import MISSING, format_number, make_table

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
    "x exact: over exact on one device without overlap; lanes: attention + MLP; idle: a round's ms in which the target "
    "waits for drafts, in which the drafter does nothing or what is thrown away; depth: serial sublayer steps a token"
)


def show_simulation(console: Console, result: dict[str, Any]) -> None:
    """Print what `simulate` returns."""
    for line in head_lines(result):
        console.print(Text(line), soft_wrap=True)
    notes = list(dict.fromkeys(row["note"] for row in result["rows"] if row["note"]))
    console.print(make_table(COLUMNS, [_cells(row, notes) for row in result["rows"]]))
    for line in [LEGEND, *(f"[{place}] {note}" for place, note in enumerate(notes, 1)), *limit_lines(result["limits"])]:
        console.print(Text(line), soft_wrap=True)
    for line in result["assumptions"]:
        console.print(Text(f"assumed: {line}"), soft_wrap=True)


def head_lines(result: dict[str, Any]) -> list[str]:
    """What was recorded, and what a sublayer costs."""
    costs = result["costs"]
    traces = "; ".join(
        f"{each['file']} ({each['rule']}, {each['rounds']} rounds, {each['steps']} draft steps)"
        for each in result["traces"]
    )
    target = ", ".join(f"{ms:.2f} ({width})" for width, ms in costs["target_ms"].items())
    parts = " / ".join(f"{costs[name]:.3f}" for name in ("attention_ms", "mlp_ms", "head_ms"))
    how = f"{result['mode']}{', overlap' if result['overlap'] else ''}"
    return [
        f"simulated: {how}, on the rounds of {traces}",
        f"an exact draft step takes {costs['draft_ms']:.2f} ms ({costs['draft_from']}), of which an attention, an MLP, "
        f"the head {parts}; each further token adds {costs['token_ms']:.3f}"
        + (f"; {costs['repeated_ms']:.3f} of an MLP are repeated on each device" if costs["repeated_ms"] else ""),
        f"a target forward takes ms (tokens): {target} ({costs['target_from']})",
    ]


def limit_lines(limits: dict[str, Any]) -> list[str]:
    """How far any drafter can get."""
    note = f" ({limits['note']})" if limits["note"] else ""
    return [
        f"limits, from exact on one device, {limits['exact_over_plain']:.2f}x plain decoding{note}: of a round of "
        f"{limits['draft_ms_per_round']:.1f} + {limits['verify_ms_per_round']:.1f} ms drafting is "
        f"f = {limits['draft_share']:.3f}",
        f"a drafter that takes no time brings 1/(1-f) = {limits['amdahl']:.2f}x over that; overlap at its best "
        f"(draft + verify) / max(draft, verify) = {limits['perfect_overlap']:.2f}x, and never more than 2x",
    ]


def _cells(row: dict[str, Any], notes: list[str]) -> tuple[str, ...]:
    threshold = MISSING if row["threshold"] is None else f"{row['threshold']:g}"
    lanes = f"{row['attention_window']} + {row['mlp_window']}" if row["attention_window"] else MISSING
    alpha = format_number(row["acceptance_rate"], 2)
    return (
        str(row["devices"]),
        threshold,
        lanes,
        format_number(row["draft_step_ms"], 2),
        format_number(row["draft_speedup"], 2),
        format_number(row["speedup_over_plain"], 2),
        format_number(row["speedup_over_exact"], 2),
        format_number(row["target_idle_ms"], 2),
        format_number(row["drafter_idle_ms"], 2),
        format_number(row["serial_depth"], 1),
        f"{alpha} measured" if not row["note"] else f"{alpha} [{notes.index(row['note']) + 1}]",
    )
