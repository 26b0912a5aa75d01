"""Print a speed comparison: tables of speeds, of the parts of a round and of devices, then a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pdevis.benchmarks.bootstrap import format_interval
from pdevis.benchmarks.speed.baselines import GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN, SYNTHETIC
from pdevis.util.console import MISSING, format_number, make_table, print_lines
from pdevis.util.labels import format_models

SPEED_COLUMNS = (
    "decoder",
    "tokens/s",
    "x plain (median)",
    "x transformers (median)",
    "decode only x plain",
    "same ids",
)
ROUND_COLUMNS = (  # title, key of a row, decimal places
    ("α", "acceptance_rate", 2),
    ("β", "beta", 2),
    ("γ̄", "mean_gamma", 2),
    ("tokens/round", "mean_accept_length", 2),
    ("skip", "mean_skip", 1),
    ("depth", "serial_depth", 1),
    ("draft step ms", "draft_step_ms", 2),
    ("c", "c", 3),
)
LEGEND = (
    "α accepted / drafted; β the same per position that was tested; γ̄ drafted / rounds; c draft step / plain step; "
    "analytic speedup E / (γ̄c + 1) with E from β / as measured, and the fraction of it that decoding reaches"
)
DEVICE_COLUMNS = (
    "drafting on devices",
    "draft tokens/s x",
    "retention",
    "idle ms/round: target",
    "drafter",
    "ahead / dropped / rounds",
    "x without overlap",
    "decode only",
)


def show_speed(console: Console, summary: dict[str, Any]) -> None:
    """Print what `summarize` returns."""
    rows = summary["rows"]
    print_lines(console, head_lines(summary))
    console.print(make_table(SPEED_COLUMNS, map(_speed_cells, rows)))
    with_rounds = [row for row in rows if row.get("round_ms")]
    if any(row["kind"] == "speculative" for row in with_rounds):
        titles = (title for title, *_ in ROUND_COLUMNS)
        columns = ("a round of", *titles, "draft / verify / rest ms", "analytic x", "reached")
        console.print(make_table(columns, map(_round_cells, with_rounds)))
        print_lines(console, [LEGEND])
    if devices := device_rows(rows):
        console.print(make_table(DEVICE_COLUMNS, devices))
    print_lines(console, [*category_lines(summary["categories"]), *foot_lines(summary)])


def _speed_cells(row: dict[str, Any]) -> tuple[str, ...]:
    over = [row["over"].get(reference) for reference in (PLAIN, GENERATE)]
    ratios = [f"{format_interval(part['ratio'], 2)} ({part['median']:.2f})" if part else MISSING for part in over]
    decode = format_interval(row.get("decode_over_plain"), 2) if row["kind"] == "speculative" else MISSING
    same = f"{row['same_ids']}/{row['prompts']}"
    same_ids = same if row["compared"] else f"({same})"
    return (row["name"], format_interval(row["tokens_per_second"], 2), *ratios, decode, same_ids)


def _round_cells(row: dict[str, Any]) -> tuple[str, ...]:
    counts = []
    for _, key, digits in ROUND_COLUMNS:
        value = row.get(key)
        counts.append(format_number(value["value"] if isinstance(value, dict) else value, digits))
    times = " / ".join(format_number(row["round_ms"][part], 1) for part in ("draft", "verify", "rest"))
    analytic, reached = row.get("analytic_speedup"), row.get("share_of_analytic")
    percent = MISSING if not reached else f"{_both_lengths(reached, scale=100, digits=0)} %"
    return (row["name"], *counts, times, _both_lengths(analytic, scale=1, digits=2), percent)


def _both_lengths(values: dict[str, float] | None, *, scale: float, digits: int) -> str:
    """Return the values from β and from the measured length of a round."""
    if not values:
        return MISSING
    return " / ".join(f"{scale * values[name]:.{digits}f}" for name in ("from_beta", "from_length"))


def device_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of `DEVICE_COLUMNS` for each row that was measured on named devices or with overlap."""
    cells = []
    for row in rows:
        if not (metrics := row.get("devices")):
            continue
        drafting = [format_interval(metrics.get(name), 2) for name in ("draft_speedup", "retention")]
        idle = [f"{metrics[name]:.1f}" for name in ("target_idle_ms", "drafter_idle_ms")]
        ahead = f"{metrics['ahead_rounds']} / {metrics['ahead_dropped']} / {metrics['rounds']}"
        gains = [format_interval(metrics.get(name), 2) for name in ("overlap", "overlap_decode")]
        cells.append((row["name"], *drafting, *idle, ahead if row["overlap"] else MISSING, *gains))
    return cells


def head_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines above the tables: models, devices, prompts."""
    pair, settings = summary["pair"] or {}, summary["settings"]
    models = " · ".join([*format_models(pair), f"{settings.get('threads')} threads"])
    state = "PARTIAL, the run has not finished: " if summary["partial"] else ""
    prompts = f"{summary['prompts']} prompts x {settings.get('length')} tokens, greedy, interleaved"
    return [models, *synthetic_lines(settings), f"{state}{prompts} (brackets: 95 % bootstrap intervals)"]


def synthetic_lines(settings: dict[str, Any]) -> list[str]:
    """Return the line that says that acceptance was drawn; none if it is real."""
    acceptance = settings.get("synthetic_acceptance")
    if acceptance is None:
        return []
    return [f"{SYNTHETIC}: acceptance is drawn, {acceptance:g} per position, not measured; times are real"]


def category_lines(categories: dict[str, Any]) -> list[str]:
    """Return one line per category: each decoder's speed over plain decoding."""
    lines = []
    for category, group in categories.items():
        ratios = [
            f"{name.removeprefix('pdevis, ')} {format_interval(ratio, 2)}"
            for name, ratio in group["over_plain"].items()
        ]
        lines.append(f"{category} ({group['prompts']}), x plain: {'; '.join(ratios)}")
    return lines


def foot_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines below the tables: draft step, memory, equality, and the decoders that were left out."""
    lines = []
    if step := summary["draft_step"]:
        lines.append(
            f"draft step: {step['ours_ms']['mean']:.2f} ms ({step['precision']}), the same drafter under transformers "
            f"{step['transformers_ms']['mean']:.2f} ms ({step['transformers_dtype']}): "
            f"{format_interval(step['speedup'], 2)}x faster, median {step['median_speedup']:.2f}x, "
            f"{step['steps']} steps, interleaved"
        )
    memory = summary["memory"]
    if memory and "peak_bytes" in memory:
        lines.append(memory_line(memory))
    lines += equality_lines(summary["equality"])
    lines += [f"left out: {name} ({reason})" for name, reason in summary["left_out"].items()]
    if memory and "left_out" in memory:
        lines.append(f"left out: peak memory ({memory['left_out']})")
    return lines


def memory_line(memory: dict[str, Any]) -> str:
    """Return the peak memory of pdevis and its ratio to the bytes of the weights."""
    weights = {name: _format_bytes(count) for name, count in memory["weight_bytes"].items()}
    peak, loaded, before = (_format_bytes(memory[f"{name}_bytes"]) for name in ("peak", "loaded", "before"))
    cuda = "".join(f"; {device} {_format_bytes(count)}" for device, count in memory["cuda"].items())
    return (
        f"peak memory of pdevis alone: {peak}, {before} of it libraries ({loaded} once loaded); weights "
        f"{weights['both']} (target {weights['target']}, drafter {weights['drafter']}): "
        f"{memory['peak_over_weights']:.2f}x, without the libraries {memory['models_over_weights']:.2f}x{cuda}"
    )


def equality_lines(equality: dict[str, Any]) -> list[str]:
    """Return the lines about equality of greedy outputs, and about decoders that are not comparable."""
    lines = [f"not compared: {name} ({note})" for name, note in equality["not_compared"].items()]
    if not equality["compared"]:
        return lines
    if equality["all_equal"]:
        count = len(equality["compared"])
        return [f"all greedy outputs are equal to plain decoding's, of {count} decoders", *lines]
    differing = ", ".join(f"{name} on {count}" for name, count in equality["different"].items())
    return [f"greedy outputs differ from plain decoding's: {differing}", *lines]


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
