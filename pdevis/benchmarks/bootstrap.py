"""95 % intervals by the percentile bootstrap over questions.

Its one idea: every figure of a summary is a function of sums over questions (Σ tokens / Σ seconds, Σ correct / Σ 1, a
difference of two of them), so one resample is a vector of counts, how often each question was drawn, and all figures
of that resample come from the same counts @ columns. Figures that share their questions so share their resamples:
ratios and differences between methods are paired.

Shapes: N = questions, C = columns, R = resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
CHUNK = 1 << 22  # counts held at once: bounds the memory of large benchmarks

Figure = Callable[[np.ndarray], np.ndarray]  # [..., C] sums -> [...] values


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval. `low` and `high` are None where one question is all there is."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def excludes_zero(self) -> bool:
        """Whether the figure differs significantly from 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resampled_sums(columns: np.ndarray, seed: int = SEED, resamples: int = RESAMPLES) -> np.ndarray:
    """Column sums [R, C] of `resamples` draws of N rows, with replacement, from `columns` [N, C]."""
    rows = len(columns)
    step = max(1, CHUNK // rows)
    starts = range(0, resamples, step)
    return np.concatenate([_counts(rows, min(step, resamples - i), seed, i).astype(float) @ columns for i in starts])


@lru_cache(maxsize=16)  # the figures of a benchmark share their questions, and drawing takes longer than adding up
def _counts(rows: int, resamples: int, seed: int, start: int) -> np.ndarray:
    """How often each row is drawn [resamples, rows]; `start` is the number of the first of these resamples."""
    generator = np.random.default_rng([seed, start])
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.uint16)


def interval(columns: list[list[float]], figure: Figure, seed: int = SEED) -> Interval | None:
    """The figure of the questions' sums, with its interval.

    Args:
        columns: C lists of N numbers, one per question.
        figure: from sums [..., C] to the figure [...].
        seed: of the resampling.

    Returns:
        None where there are no questions or the figure has no value (nothing was measured: 0 / 0).
    """
    table = np.asarray(columns, dtype=float).T  # [N, C]
    if not len(table):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(figure(table.sum(0)))
        draws = figure(resampled_sums(table, seed)) if len(table) > 1 else np.empty(0)
    return _bounded(value, draws)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Column 0 over column 1."""
    return sums[..., 0] / sums[..., 1]


def ratio_of_ratios(sums: np.ndarray) -> np.ndarray:
    """(Column 0 over column 1) over (column 2 over column 3)."""
    return ratio(sums) / ratio(sums[..., 2:])


def mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """The mean of column 0 over column 1, column 2 over column 3, …, without those that have no value."""
    ratios = sums[..., 0::2] / sums[..., 1::2]
    present = np.isfinite(ratios)
    return np.where(present, ratios, 0).sum(-1) / present.sum(-1)


def _bounded(value: float, draws: np.ndarray) -> Interval | None:
    if not np.isfinite(value):
        return None
    draws = draws[np.isfinite(draws)]  # a resample may miss every question that counts, and has no value then
    if not len(draws):
        return Interval(value, None, None)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
