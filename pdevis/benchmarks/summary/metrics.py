"""The figures of a summary: sums over questions, divided at the end, each with a bootstrap interval.

A function here takes questions and returns an `Interval`, or None where nothing was measured. A question that lacks a
figure's values is left out of that figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pdevis.benchmarks.bootstrap import Interval, interval, mean_of_ratios, ratio, ratio_of_ratios
from pdevis.benchmarks.summary.load_results import Question

Row = tuple[float, ...] | None  # the numbers of one question; None: it has none


def tokens_per_second(questions: Sequence[Question], method: str) -> Interval | None:
    """Σ tokens / Σ decode seconds."""
    return _ratio(_speed(question, method) for question in questions)


def speed_ratio(questions: Sequence[Question], method: str, base: str = "target") -> Interval | None:
    """Tokens per second of `method` over those of `base`, on the questions that both answered."""
    rows = [_joined(_speed(question, method), _speed(question, base)) for question in questions]
    return interval(_columns(rows), ratio_of_ratios)


def acceptance_rate(questions: Sequence[Question]) -> Interval | None:
    """Σ accepted / Σ drafted."""
    return _ratio(_values(question, "accepted", "drafted") for question in questions)


def mean_skip(questions: Sequence[Question]) -> Interval | None:
    """Layers taken off the serial path per drafting step."""

    def row(question: Question) -> Row:
        values = _values(question, "mean_skip", "draft_steps")
        return values and (values[0] * values[1], values[1])

    return _ratio(map(row, questions))


def mean_accepted_length(questions: Sequence[Question]) -> Interval | None:
    """Tokens that a round adds, the target's own one included."""

    def row(question: Question) -> Row:
        lengths = question.blocks.get("speculative", {}).get("accept_lengths")
        return (sum(lengths), len(lengths)) if lengths else None

    return _ratio(map(row, questions))


def draft_share(questions: Sequence[Question]) -> Interval | None:
    """The drafter's part of the decode seconds."""
    return _ratio(_values(question, "draft_seconds", "seconds") for question in questions)


def quality(questions: Sequence[Question], method: str, metric: str) -> Interval | None:
    """The mean of a metric: over the questions, or over the parts of all questions where it is a list per question."""
    return _ratio(_scored(question, method, metric) for question in questions)


def macro_quality(groups: Sequence[Sequence[Question]], method: str, metric: str) -> Interval | None:
    """The mean over groups of the metric's mean in each; questions are resampled over all groups."""
    columns: list[list[float]] = [[] for _ in range(2 * len(groups))]
    for place, group in enumerate(groups):
        for row in filter(None, (_scored(question, method, metric) for question in group)):
            for column in columns:
                column.append(0.0)
            columns[2 * place][-1], columns[2 * place + 1][-1] = row
    return interval(columns, mean_of_ratios)


def quality_difference(
    questions: Sequence[Question], method: str, metric: str, base: str = "target"
) -> tuple[Interval | None, int]:
    """The mean of metric(method) − metric(base) on the questions that both answered, and their number."""
    rows = [_joined(_scored(question, method, metric), _scored(question, base, metric)) for question in questions]
    columns = _columns(rows)
    difference = interval(columns, lambda sums: ratio(sums) - ratio(sums[..., 2:]))
    return difference, len(columns[0]) if columns else 0


def total(questions: Sequence[Question], method: str, key: str) -> float | int | None:
    """The sum of a block's value over the questions that have it."""
    values = [value for question in questions if (value := question.blocks.get(method, {}).get(key)) is not None]
    return sum(values) if values else None


def same_as_target(questions: Sequence[Question]) -> dict[str, Any] | None:
    """How many speculative answers of a greedy run have the target's ids, near-ties told apart from differences."""
    blocks = [question.blocks.get("speculative", {}) for question in questions]
    checked = [block for block in blocks if block.get("same_as_target") is not None]
    if not checked:
        return None
    same = sum(block["same_as_target"] for block in checked)
    ties = sum(bool((block.get("first_difference") or {}).get("near_tie")) for block in checked)
    return {
        "items": len(checked),
        "same": same,
        "near_ties": ties,
        "real_differences": len(checked) - same - ties,
        "share": same / len(checked),
    }


def _values(question: Question, *keys: str, method: str = "speculative") -> Row:
    block = question.blocks.get(method, {})
    values = tuple(block.get(key) for key in keys)
    return None if any(value is None for value in values) else values


def _speed(question: Question, method: str) -> Row:
    return _values(question, "tokens_generated", "seconds", method=method)


def _scored(question: Question, method: str, metric: str) -> Row:
    """(sum, count) of a metric: (value, 1), or of a list with a value for each part of a question."""
    value = question.scores.get(method, {}).get(metric)
    if isinstance(value, (list, tuple)):
        return (float(sum(value)), float(len(value))) if value else None
    return None if value is None else (float(value), 1.0)


def _joined(*rows: Row) -> Row:
    return None if any(row is None for row in rows) else tuple(value for row in rows for value in row or ())


def _columns(rows: Iterable[Row]) -> list[list[float]]:
    kept = [row for row in rows if row is not None]
    return [list(column) for column in zip(*kept)]


def _ratio(rows: Iterable[Row], figure: Callable[[Any], Any] = ratio) -> Interval | None:
    return interval(_columns(rows), figure)
