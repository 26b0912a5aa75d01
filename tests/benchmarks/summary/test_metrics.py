"""Bootstrap intervals and the metrics of a summary, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.results import GroupedTask, entries
from pdevis.benchmarks.bootstrap import interval, mean_of_ratios, ratio, ratio_of_ratios, resampled_sums
from pdevis.benchmarks.summary import metrics
from pdevis.benchmarks.summary.load_results import Question


def questions(values: dict[str, list[float | None]]) -> list[Question]:
    """Questions with a metric "m" per method."""
    count = len(next(iter(values.values())))
    return [
        Question({}, {method: {} for method in values}, {method: {"m": column[i]} for method, column in values.items()})
        for i in range(count)
    ]


def speeds(**methods: list[tuple[int, float] | None]) -> list[Question]:
    """Questions with (tokens, seconds) per method."""
    sample = []
    for i in range(len(next(iter(methods.values())))):
        blocks = {}
        for method, column in methods.items():
            if column[i] is not None:
                blocks[method] = dict(zip(("tokens_generated", "seconds"), column[i]))
        sample.append(Question({}, blocks))
    return sample


def test_rate_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    result = metrics.tokens_per_second(speeds(target=[(10, 1.0), (10, 4.0)]), "target")
    assert result.value == pytest.approx(20 / 5)
    assert 2.5 - 1e-9 <= result.low <= result.high <= 10 + 1e-9


def test_speed_ratio_uses_only_questions_that_both_answered() -> None:
    sample = speeds(target=[(10, 1.0), None, (10, 1.0)], speculative=[(10, 0.5), (10, 100.0), (30, 1.5)])
    result = metrics.speed_ratio(sample, "speculative")
    assert result.value == pytest.approx(2.0)
    assert (result.low, result.high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert metrics.speed_ratio(sample, "drafter") is None


def test_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    result = interval([values.tolist(), [1.0] * 400], ratio)
    error = 1.96 * values.std(ddof=1) / 20
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - error, abs=0.25 * error)
    assert result.high == pytest.approx(values.mean() + error, abs=0.25 * error)


def test_interval_covers_the_true_value_in_about_95_percent_of_cases() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        result = interval([(generator.random(80) < 0.6).astype(float).tolist(), [1.0] * 80], ratio)
        covered += result.low <= 0.6 <= result.high
    assert 51 <= covered <= 60


def test_intervals_are_reproducible_and_depend_on_the_seed() -> None:
    columns = [[1.0, 0.0, 1.0, 1.0, 0.0], [1.0] * 5]
    assert interval(columns, ratio) == interval(columns, ratio)
    wide = [np.random.default_rng(1).random(50).tolist(), [1.0] * 50]
    assert interval(wide, ratio, seed=1) != interval(wide, ratio, seed=2)


def test_resampling_in_chunks_draws_every_row_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdevis.benchmarks.bootstrap.MAX_COUNTS", 30)
    sums = resampled_sums(np.eye(10), resamples=500)
    assert sums.shape == (500, 10)
    assert (sums.sum(1) == 10).all()
    assert sums.mean(0) == pytest.approx(np.ones(10), abs=0.2)


def test_one_question_has_no_interval_and_no_question_has_no_value() -> None:
    result = interval([[3.0], [2.0]], ratio)
    assert (result.value, result.low, result.high) == (1.5, None, None)
    assert interval([], ratio) is None
    assert interval([[0.0, 0.0], [0.0, 0.0]], ratio) is None


def test_quality_difference_is_paired() -> None:
    """Noise that both methods share cancels: a small steady gain is significant, though the intervals overlap."""
    generator = np.random.default_rng(5)
    base = generator.normal(50, 20, 100)
    sample = questions({"target": base.tolist(), "speculative": (base + 1 + generator.normal(0, 0.5, 100)).tolist()})
    difference, items = metrics.quality_difference(sample, "speculative", "m")
    assert items == 100
    assert difference.value == pytest.approx(1, abs=0.2)
    assert difference.excludes_zero
    apart = [metrics.quality(sample, method, "m") for method in ("target", "speculative")]
    assert apart[0].high > apart[1].low


def test_no_difference_is_not_significant() -> None:
    sample = questions({"target": [1.0, 0.0, 1.0, 0.0] * 10, "speculative": [1.0, 0.0, 1.0, 0.0] * 10})
    difference, _ = metrics.quality_difference(sample, "speculative", "m")
    assert (difference.value, difference.excludes_zero) == (0, False)
    generator = np.random.default_rng(1)
    sample = questions(
        {name: (generator.random(60) < 0.5).astype(float).tolist() for name in ("target", "speculative")}
    )
    assert not metrics.quality_difference(sample, "speculative", "m")[0].excludes_zero


def test_missing_scores_are_left_out() -> None:
    sample = questions({"target": [1.0, None, 0.0], "speculative": [1.0, 1.0, None]})
    assert metrics.quality(sample, "target", "m").value == 0.5
    difference, items = metrics.quality_difference(sample, "speculative", "m")
    assert (difference.value, items) == (0, 1)
    assert metrics.quality(sample, "drafter", "m") is None


def test_macro_is_the_mean_over_groups() -> None:
    groups = [questions({"target": [1.0] * 9 + [0.0]}), questions({"target": [0.0, 0.0]})]
    result = metrics.macro_quality(groups, "target", "m")
    assert result.value == pytest.approx(0.45)
    assert result.low < 0.45 < result.high
    sums = np.array([[9.0, 10.0, 0.0, 2.0], [4.0, 4.0, 0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        means = mean_of_ratios(sums)
    assert means.tolist() == pytest.approx([0.45, 1])  # the second resample misses a group


def test_ratio_of_ratios() -> None:
    assert ratio_of_ratios(np.array([6.0, 2.0, 3.0, 4.0])) == 4


def test_drafting_metrics_are_ratios_of_sums() -> None:
    blocks = [
        {"accepted": 1, "drafted": 8, "mean_skip": 4.0, "draft_steps": 8, "accept_lengths": [1, 2]},
        {"accepted": 2, "drafted": 2, "mean_skip": 0.0, "draft_steps": 2, "accept_lengths": [3]},
        {"accepted": 0, "drafted": 0, "mean_skip": None, "draft_steps": 0, "accept_lengths": []},
    ]
    sample = [Question({}, {"speculative": block}) for block in blocks]
    assert metrics.acceptance_rate(sample).value == pytest.approx(3 / 10)
    assert metrics.mean_skip(sample).value == pytest.approx(32 / 10)
    assert metrics.mean_accepted_length(sample).value == pytest.approx(6 / 3)
    assert metrics.mean_skip([sample[2]]) is None


def test_equality_counts_near_ties_separately() -> None:
    blocks = [
        {"same_as_target": True},
        {"same_as_target": False, "first_difference": {"near_tie": True}},
        {"same_as_target": False, "first_difference": {"near_tie": False}},
        {},
    ]
    result = metrics.same_as_target([Question({}, {"speculative": block}) for block in blocks])
    assert result == {"items": 3, "same": 1, "near_ties": 1, "real_differences": 1, "share": pytest.approx(1 / 3)}
    assert metrics.same_as_target([Question({}, {"speculative": {}})]) is None


def test_invented_entries_have_the_documented_counts() -> None:
    task = GroupedTask()
    rights = [task.score(entry, entry["target_only"]["output_text"])["correct"] for entry in entries("mmlu", 8)]
    assert sum(rights) == 6
