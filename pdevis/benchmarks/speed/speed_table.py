"""The speed comparison as a reader sees it: a table of speeds, one of what a round is made of, and a few lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pdevis.benchmarks.speed.baselines import GENERATE
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.speed_devices import TITLES, table_rows
from pdevis.benchmarks.summary.summary_table import MISSING, bounds, number, table
from pdevis.util.labels import format_models

LEGEND = (
    "α accepted / drafted; β the same per position that was tested; γ̄ drafted / rounds; c draft step / plain step; "
    "analytic speedup E / (γ̄c + 1) with E from β / as measured, and the share of it that decoding reaches"
)
ANATOMY = (
    ("α", "acceptance_rate", 2),
    ("β", "beta", 2),
    ("γ̄", "mean_gamma", 2),
    ("tokens/round", "mean_accept_length", 2),
    ("skip", "mean_skip", 1),
    ("depth", "serial_depth", 1),
    ("draft step ms", "draft_step_ms", 2),
    ("c", "c", 3),
)


def show_speed(console: Console, summary: dict[str, Any]) -> None:
    """Print what `summarize` returns."""
    for line in head_lines(summary):
        console.print(Text(line), soft_wrap=True)
    rows = summary["rows"]
    speeds = [
        (
            row["name"],
            bounds(row["tokens_per_second"], 2),
            *(_over(row, other) for other in (PLAIN, GENERATE)),
            bounds(row.get("decode_over_plain"), 2) if row["kind"] == "speculative" else MISSING,
            _same(row),
        )
        for row in rows
    ]
    titles = ("decoder", "tokens/s", "x plain (median)", "x transformers (median)", "decode only x plain", "same ids")
    console.print(table(titles, speeds))
    ours = [row for row in rows if row.get("round_ms")]
    if any(row["kind"] == "speculative" for row in ours):
        columns = (*(title for title, *_ in ANATOMY), "draft / verify / rest ms", "analytic x", "reached")
        console.print(table(("a round of", *columns), map(_anatomy, ours)))
        console.print(Text(LEGEND), soft_wrap=True)
    if devices := table_rows(rows, bounds, MISSING):
        console.print(table(TITLES, devices))
    for category, group in summary["categories"].items():
        each = [f"{name.removeprefix('pdevis, ')} {bounds(found, 2)}" for name, found in group["over_plain"].items()]
        console.print(Text(f"{category} ({group['prompts']}), x plain: {'; '.join(each)}"), soft_wrap=True)
    for line in foot_lines(summary):
        console.print(Text(line), soft_wrap=True)


def head_lines(summary: dict[str, Any]) -> list[str]:
    """What was measured."""
    pair, settings = summary["pair"] or {}, summary["settings"]
    state = "PARTIAL, the run has not finished: " if summary["partial"] else ""
    what = f"{state}{summary['prompts']} prompts x {settings.get('length')} tokens, greedy, in turn"
    models = " · ".join([*format_models(pair), f"{settings.get('threads')} threads"])
    return [models, f"{what} (brackets: 95 % bootstrap intervals)"]


def foot_lines(summary: dict[str, Any]) -> list[str]:
    """The draft step, memory, equality, and who is left out and why."""
    lines = []
    step = summary["draft_step"]
    if step:
        lines.append(
            f"draft step: {step['ours_ms']['mean']:.2f} ms ({step['precision']}), the same drafter under transformers "
            f"{step['transformers_ms']['mean']:.2f} ms ({step['transformers_dtype']}): "
            f"{bounds(step['speedup'], 2)}x faster, median {step['median_speedup']:.2f}x, {step['steps']} steps in turn"
        )
    memory = summary["memory"]
    if memory and "peak_bytes" in memory:
        weights = {name: _size(count) for name, count in memory["weight_bytes"].items()}
        now, loaded, before = (_size(memory[f"{name}_bytes"]) for name in ("peak", "loaded", "before"))
        lines.append(
            f"peak memory of pdevis alone: {now}, {before} of it libraries ({loaded} once loaded); weights "
            f"{weights['both']} (target {weights['target']}, drafter {weights['drafter']}): "
            f"{memory['peak_over_weights']:.2f}x, without the libraries {memory['models_over_weights']:.2f}x"
            + "".join(f"; {name} {_size(used)}" for name, used in memory["cuda"].items())
        )
    lines += equality_lines(summary["equality"])
    lines += [f"left out: {name} ({reason})" for name, reason in summary["left_out"].items()]
    if memory and "left_out" in memory:
        lines.append(f"left out: peak memory ({memory['left_out']})")
    return lines


def equality_lines(found: dict[str, Any]) -> list[str]:
    """Whether greedy outputs are equal, and which are not comparable."""
    lines = [f"not compared: {name} ({note})" for name, note in found["not_compared"].items()]
    if not found["compared"]:
        return lines
    if found["all_equal"]:
        return [f"all greedy outputs are equal to plain decoding's, of {len(found['compared'])} decoders", *lines]
    differing = ", ".join(f"{name} on {count}" for name, count in found["different"].items())
    return [f"greedy outputs differ from plain decoding's: {differing}", *lines]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _over(row: dict[str, Any], other: str) -> str:
    found = row["over"].get(other)
    return f"{bounds(found['ratio'], 2)} ({found['median']:.2f})" if found else MISSING


def _same(row: dict[str, Any]) -> str:
    count = f"{row['same_ids']}/{row['prompts']}"
    return count if row["compared"] else f"({count})"


def _anatomy(row: dict[str, Any]) -> tuple[str, ...]:
    values = [row.get(name) for _, name, _ in ANATOMY]
    plain = [value["value"] if isinstance(value, dict) else value for value in values]
    counts = [number(value, digits) for value, (*_, digits) in zip(plain, ANATOMY, strict=True)]
    times = " / ".join(number(row["round_ms"][part], 1) for part in ("draft", "verify", "rest"))
    analytic, shares = row.get("analytic_speedup"), row.get("share_of_analytic")
    reached = [
        " / ".join(f"{scale * each[name]:.{digits}f}" for name in ("from_beta", "from_length")) if each else MISSING
        for each, scale, digits in ((analytic, 1, 2), (shares, 100, 0))
    ]
    return (row["name"], *counts, times, reached[0], reached[1] + " %" if shares else MISSING)
