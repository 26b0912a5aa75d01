"""A result file becomes a summary: speed, acceptance and quality with 95 % intervals, overall and by group.

    python summary/wmt/summary_wmt.py --input results/wmt.json --output results/wmt_summary.json --plot results/wmt.png

Rates are ratios of sums, never means of ratios. What was not measured is left out by name, never zero. Questions that
failed are counted, never averaged in. Loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, Interval
from pdevis.benchmarks.runs.result_files import METHODS
from pdevis.benchmarks.summary import metrics as figures
from pdevis.benchmarks.summary.load_results import Question, Run, read_questions

if TYPE_CHECKING:
    from pdevis.benchmarks.tasks import Task

MULTI_TURN = "multi-turn"  # the group that Spec-Bench reports its conversations of several turns in


def summarize(run: Run, task: Task) -> dict[str, Any]:
    """The summary of a run, ready for JSON.

    Raises:
        ValueError: for an entry that cannot be scored, naming the question.
    """
    questions = read_questions(run, task)
    metrics = metrics_of(questions, task)
    methods = [method for method in METHODS if any(method in question.blocks for question in questions)]
    summary = {
        "benchmark": run.benchmark,
        "input": str(run.path),
        "partial": run.partial,
        "items": len(run.entries),
        "errors": sum(run.errors.values()),
        "error_messages": dict(run.errors.most_common()),
        "intervals": {
            "kind": "percentile bootstrap over questions, the same resamples for all methods",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "lower_is_better": list(task.lower_is_better),
        "methods": {method: _method(questions, method, metrics, task) for method in methods},
        "headline": _headline(questions, metrics),
        "groups": {key: _groups(questions, key, methods, metrics) for key in task.groups},
        "run": run.meta,
    }
    if run.benchmark == "specbench":
        several = [question for question in questions if question.turns > 1]
        if several:
            summary["groups"].setdefault("turns", {"by": {}})["by"][MULTI_TURN] = _group(several, methods, metrics)
    comparison = {method: _compare(questions, method, task) for method in ("speculative", "drafter")}
    return summary | _present({"comparison": _present(comparison)})


def metrics_of(questions: Sequence[Question], task: Task) -> list[str]:
    """The task's metrics, and what its scores say of each part of a question (IFEval: of each instruction)."""
    scores = [score for question in questions for score in question.scores.values()]
    parts = [
        name
        for name in dict.fromkeys(key for score in scores for key in score)
        if all(isinstance(score.get(name), list) and all(isinstance(x, bool) for x in score[name]) for score in scores)
    ]
    return [*task.metrics, *parts]


def _method(questions: Sequence[Question], method: str, metrics: Sequence[str], task: Task) -> dict[str, Any]:
    answered = [question for question in questions if method in question.blocks]
    result = {
        "items": len(answered),
        "tokens": figures.total(answered, method, "tokens_generated"),
        "seconds": figures.total(answered, method, "seconds"),
        "prefill_seconds": figures.total(answered, method, "prefill_seconds"),
        "tokens_per_second": _plain(figures.tokens_per_second(answered, method)),
        "quality": _present({name: _plain(figures.quality(answered, method, name)) for name in metrics}),
    }
    if method == "speculative":
        for name in ("drafted", "accepted", "draft_seconds", "verify_seconds"):
            result[name] = figures.total(answered, method, name)
        result["target_forwards"] = figures.total(answered, method, "spec_target_model_calls_reported")
        result |= _drafting(answered)
        result["draft_share"] = _plain(figures.draft_share(answered))
    entries, texts = [question.entry for question in answered], _texts(answered, method)
    scores = [question.scores[method] for question in answered]
    return _present(result | {"corpus": task.corpus(entries, texts, scores)})


def _drafting(questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "acceptance_rate": _plain(figures.acceptance_rate(questions)),
        "mean_accepted_length": _plain(figures.mean_accepted_length(questions)),
        "mean_skip": _plain(figures.mean_skip(questions)),
    }


def _headline(questions: Sequence[Question], metrics: Sequence[str]) -> dict[str, Any]:
    result = {
        "speculative_over_target_speed": _plain(figures.speed_ratio(questions, "speculative")),
        "drafter_over_target_speed": _plain(figures.speed_ratio(questions, "drafter")),
        **_drafting(questions),
        "same_as_target": figures.same_as_target(questions),
    }
    differences = {}
    for metric in metrics:
        difference, items = figures.quality_difference(questions, "speculative", metric)
        if difference is not None:
            differences[metric] = {**difference.as_dict(), "significant": difference.excludes_zero, "items": items}
    return _present(result | {"quality_speculative_minus_target": differences})


def _groups(questions: Sequence[Question], key: str, methods: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """By the entries' `key`; quality also as the mean over groups (macro) and over questions (micro)."""
    members: dict[str, list[Question]] = {}
    for question in questions:
        members.setdefault(str(question.entry.get(key)), []).append(question)
    members = dict(sorted(members.items()))
    quality = {
        name: {
            method: _present(
                {
                    metric: _plain(
                        figures.macro_quality(list(members.values()), method, metric)
                        if name == "macro"
                        else figures.quality(questions, method, metric)
                    )
                    for metric in metrics
                }
            )
            for method in methods
        }
        for name in ("macro", "micro")
    }
    by = {name: _group(group, methods, metrics) for name, group in members.items()}
    return {**(quality if metrics else {}), "by": by}


def _group(questions: Sequence[Question], methods: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"items": len(questions), "methods": {}}
    for method in methods:
        answered = [question for question in questions if method in question.blocks]
        if answered:
            result["methods"][method] = _present(
                {
                    "items": len(answered),
                    "tokens_per_second": _plain(figures.tokens_per_second(answered, method)),
                    "quality": _present({m: _plain(figures.quality(answered, method, m)) for m in metrics}),
                }
            )
    speeds = {
        f"{method}_over_target_speed": _plain(figures.speed_ratio(questions, method))
        for method in ("speculative", "drafter")
    }
    return _present(result | speeds | _drafting(questions))


def _compare(questions: Sequence[Question], method: str, task: Task) -> dict[str, Any]:
    """The field's own significance test, on the questions that the target and the method both answered."""
    both = [question for question in questions if {"target", method} <= question.blocks.keys()]
    if not both:
        return {}
    return task.compare([question.entry for question in both], _texts(both, "target"), _texts(both, method))


def _texts(questions: Sequence[Question], method: str) -> list[str]:
    return [question.blocks[method]["output_text"] for question in questions]


def _plain(figure: Interval | None) -> dict[str, float | None] | None:
    return figure and figure.as_dict()


def _present(values: dict[str, Any]) -> dict[str, Any]:
    """Without what was not measured."""
    return {name: value for name, value in values.items() if value is not None and value != {}}
