"""A summary as a reader sees it: tables and a few lines, in plain text where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.util.labels import format_models

NARROW = 150  # on a terminal narrower than this, the groups' figures come without their intervals
MISSING = "–"
LABELS = {"speculative_over_target_speed": "speculative / target", "drafter_over_target_speed": "drafter / target"}
GROUP_FIGURES = (
    ("speculative_over_target_speed", "spec. speed", 2, 1),
    ("drafter_over_target_speed", "drafter speed", 2, 1),
    ("acceptance_rate", "accept. %", 1, 100),
    ("mean_accepted_length", "per round", 2, 1),
)


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the tables of what `summarize` returns."""
    counts = f"{summary['items']} items, {summary['errors']} failed"
    state = "PARTIAL, the run has not finished: " if summary["partial"] else ""
    console.print(Text(f"{summary['benchmark']}: {state}{counts} (brackets: 95 % bootstrap intervals)"))
    for text in run_lines(summary["run"]):
        console.print(Text(text), soft_wrap=True)
    for message, count in summary["error_messages"].items():
        console.print(Text(f"  failed {count}x: {message}"), soft_wrap=True)
    _show_methods(console, summary)
    for text in headline_lines(summary):
        console.print(Text(text), soft_wrap=True)
    for key, group in summary["groups"].items():
        _show_groups(console, key, group, list(summary["methods"]))


def run_lines(run: dict[str, Any]) -> list[str]:
    """Models, devices, formats and drafting of a run, as far as its meta file tells."""
    pair, settings = run.get("pair") or {}, run.get("settings") or {}
    names = {"mode": "mode", "check": "check", "threshold": "threshold", "window": "window"}
    drafting = [f"{label} {pair[name]}" for name, label in names.items() if name in pair and "cells" not in settings]
    drafting += [f"γ {settings['gamma']}"] if "gamma" in settings else []
    return [" · ".join(part) for part in (format_models(pair), drafting) if part]


def _show_methods(console: Console, summary: dict[str, Any]) -> None:
    methods = summary["methods"]
    rows = [
        (
            name,
            str(each["items"]),
            MISSING if each.get("tokens") is None else str(each["tokens"]),
            number(each.get("seconds"), 1),
            bounds(each.get("tokens_per_second"), 2),
        )
        for name, each in methods.items()
    ]
    console.print(table(("method", "items", "tokens", "seconds", "tokens/s"), rows))
    rows = [
        (
            metric + " (less is better)" * (metric in summary["lower_is_better"]),
            *(bounds(each.get("quality", {}).get(metric), 3) for each in methods.values()),
        )
        for metric in dict.fromkeys(name for each in methods.values() for name in each.get("quality", {}))
    ]
    corpus = [corpus_scores(each.get("corpus", {})) for each in methods.values()]
    averaged = {name for each in methods.values() for name in each.get("quality", {})}
    rows += [
        (f"{name}, corpus", *(_value(each[name]) if name in each else MISSING for each in corpus))
        for name in dict.fromkeys(name for each in corpus for name in each if name not in averaged)
    ]
    if rows:
        console.print(table(("quality", *methods), rows))


def corpus_scores(corpus: dict[str, Any]) -> dict[str, float]:
    """The plain numbers of corpus metrics: {"bleu": 31.2} or {"bleu": {"score": 31.2, …}}."""
    found = {name: value.get("score") if isinstance(value, dict) else value for name, value in corpus.items()}
    return {
        name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def headline_lines(summary: dict[str, Any]) -> list[str]:
    """The headline figures, a line each; those that were not measured are left out."""
    headline = summary["headline"]
    lines = [f"speed {label}: {bounds(headline[name], 3)}x" for name, label in LABELS.items() if name in headline]
    for name, label, scale, digits, unit in (
        ("acceptance_rate", "acceptance (accepted / drafted)", 100, 1, " %"),
        ("mean_accepted_length", "mean accepted length", 1, 2, " tokens per round"),
        ("mean_skip", "mean skip", 1, 2, " layers per draft token"),
    ):
        if name in headline:
            lines.append(f"{label}: {bounds(headline[name], digits, scale)}{unit}")
    for metric, found in headline.get("quality_speculative_minus_target", {}).items():
        verdict = "significant" if found["significant"] else "not significant"
        lines.append(f"{metric}, speculative − target: {bounds(found, 4, plus='+')}: {verdict}")
    same = headline.get("same_as_target")
    if same:
        lines.append(
            f"greedy answers equal to the target's: {same['same']} of {same['items']} ({100 * same['share']:.1f} %), "
            f"{same['near_ties']} near-ties, {same['real_differences']} real differences"
        )
    for method, found in summary.get("comparison", {}).items():
        for metric, test in found.items():
            verdict = "significant" if test["significant"] else "not significant"
            difference = f"{test['difference']:+.3f}, p = {test['p_value']:.3f}: {verdict}"
            lines.append(f"{metric}, corpus, {method} − target: {difference} (paired bootstrap)")
    return lines


def _show_groups(console: Console, key: str, group: dict[str, Any], methods: Sequence[str]) -> None:
    parts = [part for each in group["by"].values() for part in each["methods"].values()]
    metrics = list(dict.fromkeys(name for part in parts for name in part.get("quality", {})))
    shown: list[tuple[str, int, float, list[dict[str, Any] | None]]] = []  # title, digits, scale, figure per group
    for method in methods if metrics else ():
        found = [each["methods"].get(method, {}).get("quality", {}).get(metrics[0]) for each in group["by"].values()]
        shown.append((method, 3, 1, found))
    for name, title, digits, scale in GROUP_FIGURES:
        shown.append((title, digits, scale, [each.get(name) for each in group["by"].values()]))
    shown = [column for column in shown if any(column[-1])]
    brief = console.width < NARROW
    rows = [
        (name, str(each["items"]), *(bounds(column[place], digits, scale, brief) for _, digits, scale, column in shown))
        for place, (name, each) in enumerate(group["by"].items())
    ]
    what = f"{metrics[0]} of each method; " if metrics else ""
    console.print(Text(f"by {key}: {what}speed over the target's; tokens per round"), soft_wrap=True)
    console.print(table((key, "items", *(title for title, *_ in shown)), rows))
    for name in ("macro", "micro"):
        for metric in metrics:
            parts = [
                f"{method} {bounds(found[metric], 3)}"
                for method, found in group.get(name, {}).items()
                if metric in found
            ]
            if parts:
                over = f"mean over {key}s" if name == "macro" else "mean over questions"
                console.print(Text(f"{metric}, {name} ({over}): {', '.join(parts)}"), soft_wrap=True)


def number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def bounds(figure: dict[str, Any] | None, digits: int, scale: float = 1, brief: bool = False, plus: str = "") -> str:
    """A figure with its interval, as in 12.30 [11.90, 12.80]; `brief`: without it; `plus`: "+" shows the sign."""
    if not figure:
        return MISSING
    ends = [figure[part] for part in ("value", "low", "high")]
    texts = [None if end is None else f"{scale * end:{plus}.{digits}f}" for end in ends]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if texts[1] and texts[2] and not brief else str(texts[0])


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table()
    for i, name in enumerate(columns):
        made.add_column(Text(name), justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made
