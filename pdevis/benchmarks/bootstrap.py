"""95 % intervals by the percentile bootstrap over questions.

Its one idea: every value of a summary is a function of sums over questions (Σ tokens / Σ seconds, Σ correct / Σ 1, a
difference of two of them), so one resample is a vector of counts, how often each question was drawn, and all values
of that resample come from the same counts @ columns. Values that share their questions therefore share their
resamples: ratios and differences between methods are paired.

Shapes: N = questions, C = columns, R = resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pdevis.util.console import MISSING

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
MAX_COUNTS = 1 << 22  # counts in memory at the same time, which limits the memory that large benchmarks take

Statistic = Callable[[np.ndarray], np.ndarray]  # [..., C] sums -> [...] values


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval. `low` and `high` are None if there is only one question."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """True if the value differs significantly from 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def as_json(interval: Interval | None) -> dict[str, float | None] | None:
    """Return {"value", "low", "high"}, as summaries store intervals; None for None."""
    return interval and asdict(interval)


def format_interval(
    interval: Mapping[str, Any] | None, digits: int, *, scale: float = 1, brief: bool = False, signed: bool = False
) -> str:
    """Return a value with its interval, as in "12.30 [11.90, 12.80]"; `MISSING` for None.

    Args:
        interval: as `as_json` returns it.
        digits: decimal places.
        scale: factor, 100 for percent.
        brief: leave the interval out.
        signed: show the sign of positive numbers too.
    """
    if not interval:
        return MISSING
    sign = "+" if signed else ""
    value, low, high = (
        None if interval[key] is None else f"{scale * interval[key]:{sign}.{digits}f}"
        for key in ("value", "low", "high")
    )
    return str(value) if brief or low is None or high is None else f"{value} [{low}, {high}]"


def describe_bootstrap(kind: str) -> dict[str, Any]:
    """Return the description of a summary's intervals; `kind` names the resampled units."""
    return {"kind": kind, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def resampled_sums(columns: np.ndarray, seed: int = SEED, resamples: int = RESAMPLES) -> np.ndarray:
    """Return column sums [R, C] of `resamples` draws of N rows, with replacement, from `columns` [N, C]."""
    rows = len(columns)
    chunk = max(1, MAX_COUNTS // rows)
    starts = range(0, resamples, chunk)
    return np.concatenate([_counts(rows, min(chunk, resamples - i), seed, i).astype(float) @ columns for i in starts])


@lru_cache(maxsize=16)  # the values of a benchmark share their questions, and drawing takes longer than adding up
def _counts(rows: int, resamples: int, seed: int, start: int) -> np.ndarray:
    """Return how often each row is drawn, [resamples, rows]; `start` is the number of the first of these resamples."""
    generator = np.random.default_rng([seed, start])
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.uint16)


def interval(columns: Sequence[Sequence[float]], statistic: Statistic, seed: int = SEED) -> Interval | None:
    """Return a statistic of the questions' sums with its 95 % interval.

    Args:
        columns: C lists of N numbers, one per question.
        statistic: from sums [..., C] to values [...].
        seed: of the resampling.

    Returns:
        None if there are no questions or the statistic has no value (nothing was measured: 0 / 0).
    """
    table = np.asarray(columns, dtype=float).T  # [N, C]
    if not len(table):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(table.sum(0)))
        draws = statistic(resampled_sums(table, seed)) if len(table) > 1 else np.empty(0)
    if not np.isfinite(value):
        return None
    draws = draws[np.isfinite(draws)]  # a resample without any question that counts has no value
    if not len(draws):
        return Interval(value, None, None)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return column 0 over column 1."""
    return sums[..., 0] / sums[..., 1]


def ratio_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Return (column 0 over column 1) over (column 2 over column 3)."""
    return ratio(sums) / ratio(sums[..., 2:])


def mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Return the mean of column 0 over column 1, column 2 over column 3, …, without those that have no value."""
    ratios = sums[..., 0::2] / sums[..., 1::2]
    present = np.isfinite(ratios)
    return np.where(present, ratios, 0).sum(-1) / present.sum(-1)
