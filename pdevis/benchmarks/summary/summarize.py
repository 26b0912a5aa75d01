"""Turn a result file into a summary: speed, acceptance and quality with 95 % intervals, overall and by group.

    python summary/wmt/summary_wmt.py --input results/wmt.json --output results/wmt_summary.json --plot results/wmt.png

Rates are ratios of sums, never means of ratios. What was not measured is left out, never zero. Questions that failed
are counted, never averaged in. Loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.bootstrap import Interval, as_json, describe_bootstrap
from pdevis.benchmarks.runs.result_files import METHODS, scored_text
from pdevis.benchmarks.summary import metrics
from pdevis.benchmarks.summary.load_results import Question, RunResults, read_questions

if TYPE_CHECKING:
    from pdevis.benchmarks.tasks import Task

MULTI_TURN = "multi-turn"  # the group in which Spec-Bench reports its conversations of several turns
COMPARED_METHODS = ("speculative", "drafter")  # those that are compared with the target


def summarize(run: RunResults, task: Task) -> dict[str, Any]:
    """Return the summary of a run, ready for JSON.

    Raises:
        ValueError: for an entry that cannot be scored, naming the question.
    """
    questions = read_questions(run, task)
    scores = score_names(questions, task)
    methods = [method for method in METHODS if any(method in question.blocks for question in questions)]
    groups = {key: _summarize_groups(questions, key, methods, scores) for key in task.groups}
    conversations = [question for question in questions if question.turns > 1]
    if run.benchmark == "specbench" and conversations:
        group = _summarize_group(conversations, methods, scores)
        groups.setdefault("turns", {"by": {}})["by"][MULTI_TURN] = group
    comparison = {method: _compare(questions, method, task) for method in COMPARED_METHODS}
    return {
        "benchmark": run.benchmark,
        "input": str(run.path),
        "partial": run.partial,
        "items": len(run.entries),
        "errors": sum(run.errors.values()),
        "error_messages": dict(run.errors.most_common()),
        "intervals": describe_bootstrap("percentile bootstrap over questions, the same resamples for all methods"),
        "lower_is_better": list(task.lower_is_better),
        "methods": {method: _summarize_method(questions, method, scores, task) for method in methods},
        "headline": _headline(questions, scores),
        "groups": groups,
        "run": run.meta,
        **_measured({"comparison": _measured(comparison)}),
    }


def score_names(questions: Sequence[Question], task: Task) -> list[str]:
    """Return the task's metrics, and the scores that each part of a question has (IFEval: each instruction)."""
    scores = [score for question in questions for score in question.scores.values()]
    part_scores = [
        name
        for name in dict.fromkeys(key for score in scores for key in score)
        if all(isinstance(score.get(name), list) and all(isinstance(x, bool) for x in score[name]) for score in scores)
    ]
    return [*task.metrics, *part_scores]


def _summarize_method(questions: Sequence[Question], method: str, scores: Sequence[str], task: Task) -> dict[str, Any]:
    answered = [question for question in questions if method in question.blocks]
    result = {
        "items": len(answered),
        "tokens": metrics.total(answered, method, "tokens_generated"),
        "seconds": metrics.total(answered, method, "seconds"),
        "prefill_seconds": metrics.total(answered, method, "prefill_seconds"),
        "tokens_per_second": metrics.tokens_per_second(answered, method),
        "quality": _quality(answered, method, scores),
        "answers": metrics.answers(answered, method),
        "unfinished_thoughts": metrics.unfinished_thoughts(answered, method),
        "reasoning_tokens": metrics.total(answered, method, "reasoning_tokens"),
    }
    if method == "speculative":
        for name in ("drafted", "accepted", "draft_seconds", "verify_seconds"):
            result[name] = metrics.total(answered, method, name)
        result["target_forwards"] = metrics.total(answered, method, "spec_target_model_calls_reported")
        result |= _drafting(answered) | {"draft_share": metrics.draft_share(answered)}
    entries = [question.entry for question in answered]
    answer_scores = [question.scores[method] for question in answered]
    return _measured(result | {"corpus": task.corpus(entries, _texts(answered, method), answer_scores)})


def _quality(questions: Sequence[Question], method: str, scores: Sequence[str]) -> dict[str, Any]:
    return _measured({name: metrics.quality(questions, method, name) for name in scores})


def _drafting(questions: Sequence[Question]) -> dict[str, Interval | None]:
    return {
        "acceptance_rate": metrics.acceptance_rate(questions),
        "mean_accepted_length": metrics.mean_accepted_length(questions),
        "mean_skip": metrics.mean_skip(questions),
    }


def _speeds_over_target(questions: Sequence[Question]) -> dict[str, Interval | None]:
    return {f"{method}_over_target_speed": metrics.speed_ratio(questions, method) for method in COMPARED_METHODS}


def _headline(questions: Sequence[Question], scores: Sequence[str]) -> dict[str, Any]:
    differences = {}
    for name in scores:
        difference, items = metrics.quality_difference(questions, "speculative", name)
        if difference is not None:
            details = {"significant": difference.excludes_zero, "items": items}
            differences[name] = {**(as_json(difference) or {}), **details}
    return _measured(
        {
            **_speeds_over_target(questions),
            **_drafting(questions),
            "same_as_target": metrics.same_as_target(questions),
            "quality_speculative_minus_target": differences,
        }
    )


def _summarize_groups(
    questions: Sequence[Question], key: str, methods: Sequence[str], scores: Sequence[str]
) -> dict[str, Any]:
    """Summarize by the entries' `key`; quality also as the mean over groups (macro) and over questions (micro)."""
    members: dict[str, list[Question]] = {}
    for question in questions:
        members.setdefault(str(question.entry.get(key)), []).append(question)
    groups = dict(sorted(members.items()))
    means: dict[str, Any] = {}
    if scores:
        means["macro"] = {
            method: _measured({name: metrics.macro_quality(list(groups.values()), method, name) for name in scores})
            for method in methods
        }
        means["micro"] = {method: _quality(questions, method, scores) for method in methods}
    return {**means, "by": {name: _summarize_group(group, methods, scores) for name, group in groups.items()}}


def _summarize_group(questions: Sequence[Question], methods: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    by_method = {}
    for method in methods:
        answered = [question for question in questions if method in question.blocks]
        if answered:
            by_method[method] = _measured(
                {
                    "items": len(answered),
                    "tokens_per_second": metrics.tokens_per_second(answered, method),
                    "quality": _quality(answered, method, scores),
                }
            )
    counts = {"items": len(questions), "methods": by_method}
    return _measured(counts | _speeds_over_target(questions) | _drafting(questions))


def _compare(questions: Sequence[Question], method: str, task: Task) -> dict[str, Any]:
    """Run the task's own significance test on the questions that the target and the method both answered."""
    both = [question for question in questions if {"target", method} <= question.blocks.keys()]
    if not both:
        return {}
    return task.compare([question.entry for question in both], _texts(both, "target"), _texts(both, method))


def _texts(questions: Sequence[Question], method: str) -> list[str]:
    return [scored_text(question.blocks[method]) for question in questions]


def _measured(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values ready for JSON, without those that were not measured."""
    ready = {name: as_json(value) if isinstance(value, Interval) else value for name, value in values.items()}
    return {name: value for name, value in ready.items() if value is not None and value != {}}
