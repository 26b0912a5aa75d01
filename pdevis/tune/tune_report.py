"""What a tuning run has found, and how it stands in the profile for people to read. Seconds, rates in tokens/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pdevis.profile import encode_costs
from pdevis.tune.selection import Candidate


@dataclass(frozen=True)
class Check:
    """The choice in use, behind a prompt that was not measured: "plain", "fixed" (γ as predicted) and "auto".

    `rates` are tokens per decode second, `alphas` acceptance rates (None where nothing was drafted). `foreseen` is what
    the costs predict for "fixed" given what was accepted here: it differs from the rate by the error of the costs.
    """

    prompt: str
    new_tokens: int
    rates: Mapping[str, float]
    alphas: Mapping[str, float | None]
    foreseen: float
    same_tokens: bool


@dataclass(frozen=True)
class Found:
    """All that has been measured of one pair of formats.

    Args:
        labels: of the pair.
        threads: chosen; None: both models on GPUs.
        thread_seconds: by count: "draft", "verify", "round".
        forwards: "target" and "draft": by width.
        sublayers: the same: by width, by sublayer; empty where a model hides them.
        divergences: δ of the drafter's layers; None where they are hidden.
        candidates: `exact` first.
        gamma: as the profile says.
    """

    labels: Mapping[str, str]
    threads: int | None
    thread_seconds: Mapping[int, Mapping[str, float]] | None
    forwards: Mapping[str, Mapping[int, float]]
    sublayers: Mapping[str, Mapping[int, Mapping[str, float]]]
    divergences: Sequence[float] | None
    candidates: Sequence[Candidate]
    chosen: Candidate
    gamma: int | str
    check: Check

    @property
    def formats(self) -> str:
        return f"{self.labels['target_precision']}/{self.labels['draft_precision']}"

    @property
    def expected_speedup(self) -> float:
        """Over plain decoding; γ = auto decodes plainly where drafting does not pay."""
        return max(1.0, self.chosen.speedup(self.chosen.gamma))

    @property
    def expected_rate(self) -> float:
        return self.expected_speedup * self.chosen.rate(0)


def evidence(found: Found, others: Sequence[Found]) -> dict[str, Any]:
    """For the profile, ready for JSON; `others` are pairs of formats that were measured and not chosen."""
    return _described(found) | {"other_formats": [{"formats": each.formats, **_described(each)} for each in others]}


def _described(found: Found) -> dict[str, Any]:
    chosen = found.chosen
    return {
        "expected": {
            "rule": chosen.name,
            "gamma": chosen.gamma,
            "drafting_pays": chosen.pays,
            "tokens_per_second": found.expected_rate,
            "speedup": found.expected_speedup,
            "speedup_by_text": chosen.spread(),
            "acceptance_rate": chosen.alpha(chosen.gamma),
        },
        "check": asdict(found.check),
        "candidates": [_candidate(each) for each in found.candidates],
        "measured": {
            "thread_seconds": found.thread_seconds,
            "forward_seconds": found.forwards,
            "sublayer_seconds": found.sublayers,
            "divergences": found.divergences,
        },
    }


def _candidate(each: Candidate) -> dict[str, Any]:
    return {
        "name": each.name,
        "draft": asdict(each.draft),
        "gamma": each.gamma,
        "tokens_per_second": each.rate(each.gamma),
        "speedup": each.speedup(each.gamma),
        "acceptance_rate": each.alpha(each.gamma),
        "skipped": each.skipped,
        "serial_depth": each.depth,
        "tested": each.tested,
        "acceptance_by_text": each.shares,
        "first_step_seconds": each.first_seconds,
        "next_step_seconds": each.next_seconds,
        "costs": encode_costs(each.costs(each.gamma)),
    }
