"""Result of a tuning run, and its description in the profile, which is for people and is not read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pdevis.profile import Profile, encode_costs
from pdevis.tune.selection import Candidate


@dataclass(frozen=True)
class ChoiceCheck:
    """The choice compared with plain decoding on a prompt that was not measured.

    The runs are "plain", "fixed" (γ as predicted) and "auto".

    Args:
        prompt: the prompt.
        new_tokens: tokens per run.
        rates: tokens per decode second by run.
        acceptance_rates: by run; None if nothing was drafted.
        predicted_rate: tokens/s that the costs predict for "fixed" with the acceptance of this run. It differs from
            the measured rate by the error of the costs.
        same_tokens: True if all runs wrote the same tokens.
    """

    prompt: str
    new_tokens: int
    rates: Mapping[str, float]
    acceptance_rates: Mapping[str, float | None]
    predicted_rate: float
    same_tokens: bool


@dataclass(frozen=True)
class Measurements:
    """Times and divergences of one pair of models.

    Args:
        threads: the fastest thread count; None if both models are on GPUs.
        thread_seconds: by thread count: "draft", "verify", "round"; None if both models are on GPUs.
        forward_seconds: of "target" and "draft", by width.
        sublayer_seconds: of "target" and "draft", by width and sublayer; empty for a model without sublayer access.
        divergences: δ of the drafter's layers; None without sublayer access.
    """

    threads: int | None
    thread_seconds: Mapping[int, Mapping[str, float]] | None
    forward_seconds: Mapping[str, Mapping[int, float]]
    sublayer_seconds: Mapping[str, Mapping[int, Mapping[str, float]]]
    divergences: Sequence[float] | None


@dataclass(frozen=True)
class TuneResult:
    """Measurements and choice for one pair of weight formats.

    Args:
        profile: the chosen settings.
        measured: times and divergences.
        candidates: the drafting rules, `exact` first.
        chosen: one of them.
        check: comparison of the choice with plain decoding.
    """

    profile: Profile
    measured: Measurements
    candidates: Sequence[Candidate]
    chosen: Candidate
    check: ChoiceCheck

    @property
    def formats(self) -> str:
        """The weight formats, target/drafter."""
        return f"{self.profile.pair['target_precision']}/{self.profile.pair['draft_precision']}"

    @property
    def expected_speedup(self) -> float:
        """Expected speedup over plain decoding; 1 if drafting does not pay, since γ = auto then decodes plainly."""
        return max(1.0, self.chosen.speedup(self.chosen.gamma))

    @property
    def expected_rate(self) -> float:
        """Expected tokens/s."""
        return self.expected_speedup * self.chosen.rate(0)


def describe_result(result: TuneResult, others: Sequence[TuneResult]) -> dict[str, Any]:
    """Return the description for the profile, ready for JSON.

    Args:
        result: of the chosen weight formats.
        others: of those that were measured and not chosen.
    """
    return _describe(result) | {"other_formats": [{"formats": other.formats, **_describe(other)} for other in others]}


def _describe(result: TuneResult) -> dict[str, Any]:
    chosen, check, measured = result.chosen, result.check, result.measured
    return {
        "expected": {
            "rule": chosen.name,
            "gamma": chosen.gamma,
            "drafting_pays": chosen.drafting_pays,
            "tokens_per_second": result.expected_rate,
            "speedup": result.expected_speedup,
            "speedup_by_text": chosen.speedup_range(),
            "acceptance_rate": chosen.acceptance_rate(chosen.gamma),
        },
        "check": {
            "prompt": check.prompt,
            "new_tokens": check.new_tokens,
            "rates": check.rates,
            "alphas": check.acceptance_rates,
            "foreseen": check.predicted_rate,
            "same_tokens": check.same_tokens,
        },
        "candidates": [_describe_candidate(candidate) for candidate in result.candidates],
        "measured": {
            "thread_seconds": measured.thread_seconds,
            "forward_seconds": measured.forward_seconds,
            "sublayer_seconds": measured.sublayer_seconds,
            "divergences": measured.divergences,
        },
    }


def _describe_candidate(candidate: Candidate) -> dict[str, Any]:
    gamma = candidate.gamma
    return {
        "name": candidate.name,
        "draft": asdict(candidate.rule),
        "gamma": gamma,
        "tokens_per_second": candidate.rate(gamma),
        "speedup": candidate.speedup(gamma),
        "acceptance_rate": candidate.acceptance_rate(gamma),
        "skipped": candidate.skipped,
        "serial_depth": candidate.depth,
        "tested": candidate.tested,
        "acceptance_by_text": candidate.acceptance_by_text,
        "first_step_seconds": candidate.first_step_seconds,
        "next_step_seconds": candidate.next_step_seconds,
        "costs": encode_costs(candidate.costs(gamma)),
    }
