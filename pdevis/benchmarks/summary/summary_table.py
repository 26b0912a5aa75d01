"""Print a summary: tables and a few lines, in plain text if the output is not a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from pdevis.benchmarks.bootstrap import format_interval
from pdevis.benchmarks.runs.result_files import LINES
from pdevis.reasoning.split_reasoning import unfinished_note
from pdevis.util.console import MISSING, format_number, make_table, print_lines
from pdevis.util.labels import format_models

NARROW_COLUMNS = 150  # on a narrower terminal, the tables of groups and cells come without intervals
SPEED_LABELS = {
    "speculative_over_target_speed": "speculative / target",
    "drafter_over_target_speed": "drafter / target",
}
DRAFTING_LABELS = {
    "mode": "mode",
    "check": "check",
    "serial_layers": "serial layers",
    "threshold": "threshold",
    "window": "window",
}


@dataclass(frozen=True)
class GroupColumn:
    """One column of the table of groups: its title, decimal places, scale, and an interval per group."""

    title: str
    digits: int
    scale: float
    intervals: list[dict[str, Any] | None]


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what `summarize` returns."""
    counts = f"{summary['items']} items, {summary['errors']} failed"
    state = "PARTIAL, the run has not finished: " if summary["partial"] else ""
    console.print(Text(f"{summary['benchmark']}: {state}{counts} (brackets: 95 % bootstrap intervals)"))
    print_lines(console, run_lines(summary["run"]))
    print_lines(console, (f"  failed {count}x: {message}" for message, count in summary["error_messages"].items()))
    _show_speeds(console, summary["methods"])
    _show_quality(console, summary)
    print_lines(console, thought_lines(summary))
    print_lines(console, headline_lines(summary))
    for key, group in summary["groups"].items():
        _show_groups(console, key, group, list(summary["methods"]))


def run_lines(run: dict[str, Any]) -> list[str]:
    """Return models, devices, formats and drafting settings of a run, as far as its meta file names them."""
    pair, settings = run.get("pair") or {}, run.get("settings") or {}
    drafting = [
        f"{label} {pair[name]}" for name, label in DRAFTING_LABELS.items() if name in pair and "cells" not in settings
    ]
    drafting += [f"γ {settings['gamma']}"] if "gamma" in settings else []
    return [" · ".join(part) for part in (format_models(pair), drafting) if part]


def _show_speeds(console: Console, methods: dict[str, Any]) -> None:
    rows = [
        (
            name,
            str(result["items"]),
            MISSING if result.get("tokens") is None else str(result["tokens"]),
            format_number(result.get("seconds"), 1),
            format_interval(result.get("tokens_per_second"), 2),
        )
        for name, result in methods.items()
    ]
    console.print(make_table(("method", "items", "tokens", "seconds", "tokens/s"), rows))


def _show_quality(console: Console, summary: dict[str, Any]) -> None:
    """Print a row per score: means with intervals, then the scores that exist for the whole corpus only."""
    methods = summary["methods"].values()
    scores = dict.fromkeys(name for result in methods for name in result.get("quality", {}))
    rows = [
        (
            name + " (less is better)" * (name in summary["lower_is_better"]),
            *(format_interval(result.get("quality", {}).get(name), 3) for result in methods),
        )
        for name in scores
    ]
    by_method = [corpus_scores(result.get("corpus", {})) for result in methods]
    rows += [
        (f"{name}, corpus", *(_format_score(corpus[name]) if name in corpus else MISSING for corpus in by_method))
        for name in dict.fromkeys(name for corpus in by_method for name in corpus if name not in scores)
    ]
    if rows:
        console.print(make_table(("quality", *summary["methods"]), rows))


def thought_lines(summary: dict[str, Any]) -> list[str]:
    """Return lines about the reasoning of each method: its tokens, and the answers that end inside it."""
    limit, lines = "--max_gen_len" if summary["benchmark"] in LINES else "--gen_len", []
    for method, result in summary["methods"].items():
        if count := result.get("reasoning_tokens"):
            lines.append(f"{method}: {count} of {result['tokens']} tokens are reasoning")
        if count := result["unfinished_thoughts"]:
            lines.append(f"{method}: {unfinished_note(count, result['answers'], limit=limit)}")
    return lines


def corpus_scores(corpus: dict[str, Any]) -> dict[str, float]:
    """Return the plain numbers of corpus metrics, from {"bleu": 31.2} or {"bleu": {"score": 31.2, …}}."""
    scores = {name: value.get("score") if isinstance(value, dict) else value for name, value in corpus.items()}
    return {
        name: value for name, value in scores.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def headline_lines(summary: dict[str, Any]) -> list[str]:
    """Return one line per headline metric that was measured."""
    headline = summary["headline"]
    lines = [
        f"speed {label}: {format_interval(headline[name], 3)}x"
        for name, label in SPEED_LABELS.items()
        if name in headline
    ]
    for name, label, scale, digits, unit in (
        ("acceptance_rate", "acceptance (accepted / drafted)", 100, 1, " %"),
        ("mean_accepted_length", "mean accepted length", 1, 2, " tokens per round"),
        ("mean_skip", "mean skip", 1, 2, " layers per draft token"),
    ):
        if name in headline:
            lines.append(f"{label}: {format_interval(headline[name], digits, scale=scale)}{unit}")
    for name, difference in headline.get("quality_speculative_minus_target", {}).items():
        value = format_interval(difference, 4, signed=True)
        lines.append(f"{name}, speculative − target: {value}: {_significance(difference)}")
    if same := headline.get("same_as_target"):
        lines.append(
            f"greedy answers equal to the target's: {same['same']} of {same['items']} ({100 * same['share']:.1f} %), "
            f"{same['near_ties']} near-ties, {same['real_differences']} true mismatches"
        )
    for method, tests in summary.get("comparison", {}).items():
        for name, test in tests.items():
            difference = f"{test['difference']:+.3f}, p = {test['p_value']:.3f}: {_significance(test)}"
            lines.append(f"{name}, corpus, {method} − target: {difference} (paired bootstrap)")
    return lines


def _show_groups(console: Console, key: str, group: dict[str, Any], methods: Sequence[str]) -> None:
    parts = [part for member in group["by"].values() for part in member["methods"].values()]
    scores = list(dict.fromkeys(name for part in parts for name in part.get("quality", {})))
    columns = _group_columns(group["by"], methods, scores[0] if scores else None)
    brief = console.width < NARROW_COLUMNS
    rows = []
    for number, (name, member) in enumerate(group["by"].items()):
        cells = [
            format_interval(column.intervals[number], column.digits, scale=column.scale, brief=brief)
            for column in columns
        ]
        rows.append((name, str(member["items"]), *cells))
    quality = f"{scores[0]} of each method; " if scores else ""
    print_lines(console, [f"by {key}: {quality}speed over the target's; tokens per round"])
    console.print(make_table((key, "items", *(column.title for column in columns)), rows))
    for mean, description in (("macro", f"mean over {key}s"), ("micro", "mean over questions")):
        for score in scores:
            values = [
                f"{method} {format_interval(quality[score], 3)}"
                for method, quality in group.get(mean, {}).items()
                if score in quality
            ]
            if values:
                print_lines(console, [f"{score}, {mean} ({description}): {', '.join(values)}"])


def _group_columns(groups: dict[str, Any], methods: Sequence[str], score: str | None) -> list[GroupColumn]:
    """Return the columns that have a value in any group: the score of each method, speeds, drafting."""
    columns = []
    if score:
        for method in methods:
            qualities = [group["methods"].get(method, {}).get("quality", {}) for group in groups.values()]
            columns.append(GroupColumn(method, 3, 1, [quality.get(score) for quality in qualities]))
    for name, title, digits, scale in (
        ("speculative_over_target_speed", "spec. speed", 2, 1),
        ("drafter_over_target_speed", "drafter speed", 2, 1),
        ("acceptance_rate", "accept. %", 1, 100),
        ("mean_accepted_length", "per round", 2, 1),
    ):
        columns.append(GroupColumn(title, digits, scale, [group.get(name) for group in groups.values()]))
    return [column for column in columns if any(column.intervals)]


def _significance(test: dict[str, Any]) -> str:
    return "significant" if test["significant"] else "not significant"


def _format_score(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
