"""Predicting the speed of each drafting rule from its measurements, and choosing; pure arithmetic on `RoundCosts`.

The time of a draft step is the mean over a round of γ steps, of which the first takes longer, so it depends on γ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import MAX_GAMMA, RoundCosts
from pdevis.tune.acceptance import DraftReplay
from pdevis.util.labels import format_rule

NOISE_RATIO = 1.03  # two speeds whose ratio is smaller count as equal
SINGLE_PROMPT_NOISE_RATIO = 1.1  # the same, for a comparison on one prompt
PRIOR_WEIGHT = 4  # number of observations that the acceptance of the previous position counts for


@dataclass(frozen=True)
class Candidate:
    """A drafting rule with its costs and predicted speed. Times are medians.

    Args:
        rule: the drafting settings.
        first_step_seconds: time of a round's first draft step.
        next_step_seconds: time of each further one.
        verify_seconds: time of a target forward by its tokens.
        acceptance: β of each draft position.
        skipped: layers per draft step taken off the serial path.
        depth: serial sublayer steps per draft step.
        tested: number of draft tokens compared with the target's.
        acceptance_by_text: mean acceptance on each text.
    """

    rule: DraftConfig
    first_step_seconds: float
    next_step_seconds: float
    verify_seconds: Mapping[int, float]
    acceptance: tuple[float, ...]
    skipped: float
    depth: float
    tested: int
    acceptance_by_text: tuple[float, ...] = ()

    @classmethod
    def from_replay(cls, replay: DraftReplay, verify_seconds: Mapping[int, float]) -> Candidate:
        """Summarize a replay of at least one round."""
        first = median(replay.first_step_seconds)
        return cls(
            rule=replay.rule,
            first_step_seconds=first,
            next_step_seconds=median(replay.next_step_seconds) if replay.next_step_seconds else first,
            verify_seconds=verify_seconds,
            acceptance=tuple(smoothed_acceptance(replay.tested, replay.passed)),
            skipped=replay.skipped / replay.steps,
            depth=replay.depth / replay.steps,
            tested=sum(replay.tested),
            acceptance_by_text=tuple(replay.acceptance_by_text),
        )

    @property
    def name(self) -> str:
        # a chosen schedule is named by the retention that it was chosen for: its text is too long for tables
        return format_rule(replace(self.rule, schedule=None) if self.rule.check == "static" else self.rule)

    def costs(self, gamma: int) -> RoundCosts:
        """Return the costs of rounds of γ >= 1 draft tokens."""
        step = (self.first_step_seconds + (gamma - 1) * self.next_step_seconds) / gamma
        return RoundCosts(step, dict(self.verify_seconds), self.acceptance)

    def rate(self, gamma: int) -> float:
        """Return predicted tokens/s; γ = 0 is plain decoding."""
        return self.costs(max(gamma, 1)).rate(gamma)

    def speedup(self, gamma: int) -> float:
        """Return the predicted speedup over plain decoding."""
        return self.rate(gamma) / self.rate(0)

    def acceptance_rate(self, gamma: int) -> float:
        """Return predicted accepted over drafted tokens."""
        return (self.costs(gamma).expected_tokens(gamma) - 1) / gamma

    def speedup_range(self) -> tuple[float, float]:
        """Return the smallest and the largest speedup at the best γ, each predicted from the acceptance on one text."""
        costs = self.costs(self.gamma)
        speedups = [
            replace(costs, acceptance=(acceptance,)).rate(self.gamma) / self.rate(0)
            for acceptance in self.acceptance_by_text
        ]
        return min(speedups), max(speedups)

    @property
    def gamma(self) -> int:
        """The best γ >= 1."""
        return max(range(1, MAX_GAMMA + 1), key=self.rate)

    @property
    def drafting_pays(self) -> bool:
        """True if drafting is predicted to be faster than plain decoding."""
        return self.speedup(self.gamma) > 1


def smoothed_acceptance(tested: Sequence[int], passed: Sequence[int]) -> list[float]:
    """Return β of each position. Few drafts reach late positions, so each estimate is drawn towards the position
    before it, and the first one towards the mean."""
    previous = sum(passed) / sum(tested)
    estimates = []
    for trials, successes in zip(tested, passed, strict=True):
        previous = (successes + PRIOR_WEIGHT * previous) / (trials + PRIOR_WEIGHT)
        estimates.append(previous)
    return estimates


def predicted_round_seconds(costs: RoundCosts, drafted: int) -> float:
    """Return the predicted time of a round of `drafted` tokens."""
    return drafted * costs.draft_seconds + costs.verify(drafted + 1)


def rules_to_try(modes: Sequence[str], thresholds: Sequence[float], has_sublayers: bool) -> list[DraftConfig]:
    """Return the drafting rules to try; `exact`, the baseline of the others, is the first."""
    rules = [DraftConfig(mode="exact")]
    if has_sublayers and "skip" in modes:
        rules += [DraftConfig(mode="skip", check="planned", threshold=threshold) for threshold in thresholds]
    if has_sublayers and "parallel" in modes:
        rules.append(DraftConfig(mode="parallel", check="planned", threshold=thresholds[-1], window=2))
    return rules


def static_rules(modes: Sequence[str], retentions: Sequence[float]) -> list[DraftConfig]:
    """Return the rules with static schedules to try, which have to be chosen yet: groups, layers left out, or both."""
    allowed = [mode for mode in ("skip", "parallel") if mode in modes]
    mode = "auto" if len(allowed) == 2 else allowed[0] if allowed else "exact"
    return [DraftConfig(mode=mode, check="static", retention=value) for value in retentions if mode != "exact"]


def choose_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest by prediction; the first (`exact`) unless another is faster by more than the noise."""
    exact, fastest = candidates[0], max(candidates, key=lambda candidate: candidate.rate(candidate.gamma))
    return fastest if fastest.rate(fastest.gamma) > NOISE_RATIO * exact.rate(exact.gamma) else exact


def choose_threads(seconds: Mapping[int, Mapping[str, float]]) -> int:
    """Return the thread count with the fastest round, or the lowest one that is slower by no more than the noise."""
    fastest = min(parts["round"] for parts in seconds.values())
    return min(count for count, parts in seconds.items() if parts["round"] <= NOISE_RATIO * fastest)


def choose_gamma(drafting_pays: bool, gamma: int, *, fixed_rate: float, auto_rate: float) -> int | str:
    """Return the profile's γ: the fixed one if drafting pays and "auto" was clearly slower, else "auto"."""
    return gamma if drafting_pays and fixed_rate > SINGLE_PROMPT_NOISE_RATIO * auto_rate else "auto"
