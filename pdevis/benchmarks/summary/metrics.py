"""The metrics of a summary: sums over questions, divided at the end, each with a bootstrap interval.

A function here takes questions and returns an `Interval`, or None if nothing was measured. A question that lacks the
values of a metric is left out of that metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdevis.benchmarks.bootstrap import Interval, as_json, interval, mean_of_ratios, ratio, ratio_of_ratios
from pdevis.benchmarks.runs.result_files import count_answers
from pdevis.benchmarks.summary.load_results import Question

Terms = tuple[float, ...] | None  # one question's addends to the sums of a metric; None: not measured


def tokens_per_second(questions: Sequence[Question], method: str) -> Interval | None:
    """Return Σ tokens / Σ decode seconds."""
    return _ratio_of_sums(_speed(question, method) for question in questions)


def speed_ratio(questions: Sequence[Question], method: str, base: str = "target") -> Interval | None:
    """Return tokens per second of `method` over those of `base`, on the questions that both answered."""
    terms = [_joined(_speed(question, method), _speed(question, base)) for question in questions]
    return interval(_columns(terms), ratio_of_ratios)


def acceptance_rate(questions: Sequence[Question]) -> Interval | None:
    """Return Σ accepted / Σ drafted."""
    return _ratio_of_sums(_values(question, "accepted", "drafted") for question in questions)


def mean_skip(questions: Sequence[Question]) -> Interval | None:
    """Return the layers taken off the serial path per draft step."""

    def terms(question: Question) -> Terms:
        values = _values(question, "mean_skip", "draft_steps")
        return values and (values[0] * values[1], values[1])

    return _ratio_of_sums(map(terms, questions))


def mean_accepted_length(questions: Sequence[Question]) -> Interval | None:
    """Return the tokens that a round adds, bonus token included."""

    def terms(question: Question) -> Terms:
        lengths = question.blocks.get("speculative", {}).get("accept_lengths")
        return (sum(lengths), len(lengths)) if lengths else None

    return _ratio_of_sums(map(terms, questions))


def draft_share(questions: Sequence[Question]) -> Interval | None:
    """Return the drafter's fraction of the decode seconds."""
    return _ratio_of_sums(_values(question, "draft_seconds", "seconds") for question in questions)


def quality(questions: Sequence[Question], method: str, metric: str) -> Interval | None:
    """Return the mean of a score over the questions, or over all their parts if each question has a list of values."""
    return _ratio_of_sums(_score(question, method, metric) for question in questions)


def macro_quality(groups: Sequence[Sequence[Question]], method: str, metric: str) -> Interval | None:
    """Return the mean over groups of the score's mean in each; questions are resampled over all groups."""
    columns: list[list[float]] = [[] for _ in range(2 * len(groups))]
    for number, group in enumerate(groups):
        for terms in filter(None, (_score(question, method, metric) for question in group)):
            for column in columns:
                column.append(0.0)
            columns[2 * number][-1], columns[2 * number + 1][-1] = terms
    return interval(columns, mean_of_ratios)


def quality_difference(
    questions: Sequence[Question], method: str, metric: str, base: str = "target"
) -> tuple[Interval | None, int]:
    """Return the mean of score(method) − score(base) on the questions that both answered, and their number."""
    terms = [_joined(_score(question, method, metric), _score(question, base, metric)) for question in questions]
    columns = _columns(terms)
    difference = interval(columns, lambda sums: ratio(sums) - ratio(sums[..., 2:]))
    return difference, len(columns[0]) if columns else 0


def total(questions: Sequence[Question], method: str, key: str) -> float | int | None:
    """Return the sum of a block's value over the questions that have it."""
    values = [value for question in questions if (value := question.blocks.get(method, {}).get(key)) is not None]
    return sum(values) if values else None


def answers(questions: Sequence[Question], method: str) -> int:
    """Count the answers to questions that the method answered, one per turn of a conversation."""
    return sum(count_answers(question.blocks[method])[0] for question in questions)


def unfinished_thoughts(questions: Sequence[Question], method: str) -> int:
    """Count those that end inside a thought."""
    return sum(count_answers(question.blocks[method])[1] for question in questions)


def same_as_target(questions: Sequence[Question]) -> dict[str, Any] | None:
    """Count the speculative answers of a greedy run whose ids are the target's, the near-ties, and the mismatches."""
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


def compare_drafting(
    entries: Sequence[Mapping[str, Any]], exact: Sequence[Mapping[str, Any]], tokens: str = "drafted"
) -> dict[str, dict[str, float | None] | None]:
    """Return draft speedup and retention of a drafting rule over mode `exact`, with intervals, ready for JSON.

    Args:
        entries: statistics of the rule, one per question: draft_seconds, accepted, drafted.
        exact: those of mode `exact` on the same questions.
        tokens: the statistic that counts draft tokens for the draft speedup.
    """
    return {
        "draft_speedup": _compare_ratios(entries, exact, tokens, "draft_seconds"),
        "retention": _compare_ratios(entries, exact, "accepted", "drafted"),
    }


def _compare_ratios(
    entries: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], above: str, below: str
) -> dict[str, float | None] | None:
    columns = [[entry[name] for entry in part] for part in (entries, base) for name in (above, below)]
    return as_json(interval(columns, ratio_of_ratios))


def _values(question: Question, *keys: str, method: str = "speculative") -> Terms:
    block = question.blocks.get(method, {})
    values = tuple(block.get(key) for key in keys)
    return None if any(value is None for value in values) else values


def _speed(question: Question, method: str) -> Terms:
    return _values(question, "tokens_generated", "seconds", method=method)


def _score(question: Question, method: str, metric: str) -> Terms:
    """Return (sum, count) of a score: (value, 1), or those of a list with one value per part of the question."""
    value = question.scores.get(method, {}).get(metric)
    if isinstance(value, (list, tuple)):
        return (float(sum(value)), float(len(value))) if value else None
    return None if value is None else (float(value), 1.0)


def _joined(first: Terms, second: Terms) -> Terms:
    return None if first is None or second is None else first + second


def _columns(terms: Iterable[Terms]) -> list[list[float]]:
    measured = [values for values in terms if values is not None]
    return [list(column) for column in zip(*measured, strict=True)]


def _ratio_of_sums(terms: Iterable[Terms]) -> Interval | None:
    return interval(_columns(terms), ratio)
