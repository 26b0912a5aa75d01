"""From measurements to predictions and a choice; pure arithmetic on `RoundCosts`.

A draft step's time is the mean over a round of γ steps, of which the first takes longer; so it depends on γ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import MAX_GAMMA, RoundCosts
from pdevis.tune.acceptance import Rehearsal

NOISE = 1.03  # speeds whose ratio is below this count as equal
CLEARLY = 1.1  # the same, for a comparison on a single prompt
PRIOR_WEIGHT = 4  # observations that the acceptance of the position before is worth


@dataclass(frozen=True)
class Candidate:
    """A drafting rule, what it costs and what it is expected to bring. Seconds are medians."""

    name: str
    draft: DraftConfig
    first_seconds: float  # of a round's first draft step
    next_seconds: float  # of each further one
    verify_seconds: Mapping[int, float]
    acceptance: tuple[float, ...]
    skipped: float  # layers per draft step off the serial path
    depth: float  # serial sublayer steps per draft step
    tested: int  # tokens judged
    shares: tuple[float, ...] = ()  # acceptance on each text

    def costs(self, gamma: int) -> RoundCosts:
        """The costs of rounds of γ >= 1 draft tokens."""
        step = (self.first_seconds + (gamma - 1) * self.next_seconds) / gamma
        return RoundCosts(step, dict(self.verify_seconds), self.acceptance)

    def rate(self, gamma: int) -> float:
        """Predicted tokens/s; γ = 0 is plain decoding."""
        return self.costs(max(gamma, 1)).rate(gamma)

    def speedup(self, gamma: int) -> float:
        """Predicted, over plain decoding."""
        return self.rate(gamma) / self.rate(0)

    def alpha(self, gamma: int) -> float:
        """Predicted acceptance rate: accepted over drafted tokens."""
        return (self.costs(gamma).expected_tokens(gamma) - 1) / gamma

    def spread(self) -> tuple[float, float]:
        """The least and the most of the speedups at the best γ, each predicted from the acceptance on one text."""
        costs = self.costs(self.gamma)
        each = [replace(costs, acceptance=(share,)).rate(self.gamma) / self.rate(0) for share in self.shares]
        return min(each), max(each)

    @property
    def gamma(self) -> int:
        """The best γ >= 1."""
        return max(range(1, MAX_GAMMA + 1), key=self.rate)

    @property
    def pays(self) -> bool:
        return self.speedup(self.gamma) > 1


def candidate(rehearsal: Rehearsal, verify_seconds: Mapping[int, float]) -> Candidate:
    """Sum up a rehearsal of at least one round."""
    first = median(rehearsal.first_seconds)
    return Candidate(
        rule_name(rehearsal.draft),
        rehearsal.draft,
        first,
        median(rehearsal.next_seconds) if rehearsal.next_seconds else first,
        verify_seconds,
        tuple(acceptance(rehearsal.tested, rehearsal.passed)),
        rehearsal.skipped / rehearsal.steps,
        rehearsal.depth / rehearsal.steps,
        sum(rehearsal.tested),
        tuple(rehearsal.shares),
    )


def acceptance(tested: Sequence[int], passed: Sequence[int]) -> list[float]:
    """β of each position. Few drafts get far, so each position leans on the one before, the first on the mean."""
    before = sum(passed) / sum(tested)
    shares = []
    for trials, successes in zip(tested, passed, strict=True):
        before = (successes + PRIOR_WEIGHT * before) / (trials + PRIOR_WEIGHT)
        shares.append(before)
    return shares


def round_seconds(costs: RoundCosts, drafted: int) -> float:
    """Predicted seconds of a round."""
    return drafted * costs.draft_seconds + costs.verify(drafted + 1)


def rules(modes: Sequence[str], thresholds: Sequence[float], has_sublayers: bool) -> list[DraftConfig]:
    """The drafting rules to try, `exact` first: it is what the others are compared with."""
    found = [DraftConfig(mode="exact")]
    if has_sublayers and "skip" in modes:
        found += [DraftConfig(mode="skip", check="planned", threshold=threshold) for threshold in thresholds]
    if has_sublayers and "parallel" in modes:
        found.append(DraftConfig(mode="parallel", check="planned", threshold=thresholds[-1], window=2))
    return found


def rule_name(draft: DraftConfig) -> str:
    lanes = f" W={draft.window}" if draft.mode == "parallel" else ""
    return draft.mode if draft.mode == "exact" else f"{draft.mode} τ={draft.threshold:g}{lanes}"


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest by prediction; the first (`exact`) unless another is faster by more than the noise."""
    plain, fastest = candidates[0], max(candidates, key=lambda each: each.rate(each.gamma))
    return fastest if fastest.rate(fastest.gamma) > NOISE * plain.rate(plain.gamma) else plain


def best_threads(seconds: Mapping[int, Mapping[str, float]]) -> int:
    """The thread count with the fastest round; fewer where that costs less than the noise."""
    fastest = min(each["round"] for each in seconds.values())
    return min(count for count, each in seconds.items() if each["round"] <= NOISE * fastest)


def best_draft_length(pays: bool, gamma: int, fixed_rate: float, auto_rate: float) -> int | str:
    """What the profile says of γ: the fixed one where drafting pays and auto was clearly slower."""
    return gamma if pays and fixed_rate > CLEARLY * auto_rate else "auto"
