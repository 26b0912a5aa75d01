"""Result types of a generation, from one draft to its statistics.

Shapes: V = vocabulary of the target, G = draft tokens of one round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from torch import Tensor

RATES = (  # derived properties of DecodeStats
    "acceptance_rate",
    "mean_accept_length",
    "mean_skip",
    "serial_depth",
    "target_idle_per_round",
    "drafter_idle_per_round",
    "decode_seconds",
    "tokens_per_second",
)


@dataclass(frozen=True)
class TracedPass:
    """What an exact drafter forward saw."""

    step: int  # its place in the round
    tokens: int
    similarities: list[list[float]]  # cos(h_i, h_j) of their hidden states


@dataclass
class Draft:
    """What the drafter proposes in one round."""

    ids: list[int]
    probs: Tensor | None = None  # [G, V] the distributions the ids were really drawn from; None when greedy
    skipped: float = 0.0  # layers taken off the serial path, summed over the draft tokens
    depth: int = 0  # serial sublayer steps, summed over the draft tokens
    steps: int = 0  # drafter forwards: the ids, and those cut off behind an EOS
    confidences: list[float] = field(default_factory=list)  # what the stopping rule was told
    seconds: float | None = None  # the drafter's own, where it drafts in a process of its own
    ahead: bool | None = None  # made while the target verified; None: nothing was drafted ahead
    idle_seconds: float = 0.0  # the drafter had nothing to do before it
    passes: list[TracedPass] = field(default_factory=list)  # the exact ones, where they are traced


@dataclass
class Verdict:
    """What the target makes of a draft: how many tokens it accepts, and the token it adds itself."""

    accepted: int
    bonus: int


@dataclass(frozen=True)
class TokenEvent:
    """One confirmed token. `text` is what it adds to the answer; it may be empty inside a multi-byte character."""

    id: int
    text: str
    source: Literal["draft", "target"]
    round: int


@dataclass
class DecodeStats:
    """Counts and seconds of one generation. Rates are properties: seconds and counts are stored, divided at the end.

    `rounds` is the number of target forwards after the prompt; `accept_lengths[i]` counts the tokens that round i
    added, bonus included, so that they sum to `new_tokens`; `draft_lengths[i]` counts the tokens drafted for it.
    `fallback_rounds` were decoded plainly because drafting did not pay. `skipped` and `depth` are sums over all
    `draft_steps`, the first one of each round (which comes from an exact pass when calibrating) included.

    `draft_seconds` is the target's idle time, waiting for drafts; `drafter_idle_seconds` the drafter's, with nothing to
    do. Under overlap `ahead_rounds` found their draft made already, `ahead_dropped` drafts were made and not used.
    """

    method: str = "speculative"
    mode: str = "exact"
    prompt_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    draft_steps: int = 0
    accepted: int = 0
    accept_lengths: list[int] = field(default_factory=list)
    draft_lengths: list[int] = field(default_factory=list)
    fallback_rounds: int = 0
    ahead_rounds: int = 0
    ahead_dropped: int = 0
    skipped: float = 0.0
    depth: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    drafter_idle_seconds: float = 0.0
    total_seconds: float = 0.0
    stop_reason: Literal["eos", "length", "context"] | None = None  # None: not finished

    @property
    def acceptance_rate(self) -> float | None:
        """α, accepted over drafted tokens; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_accept_length(self) -> float | None:
        return sum(self.accept_lengths) / len(self.accept_lengths) if self.accept_lengths else None

    @property
    def mean_skip(self) -> float | None:
        return self.skipped / self.draft_steps if self.draft_steps else None

    @property
    def serial_depth(self) -> float | None:
        return self.depth / self.draft_steps if self.draft_steps else None

    @property
    def target_idle_per_round(self) -> float | None:
        """Seconds that the target waited for drafts."""
        return self.draft_seconds / self.rounds if self.rounds else None

    @property
    def drafter_idle_per_round(self) -> float | None:
        return self.drafter_idle_seconds / self.rounds if self.rounds else None

    @property
    def decode_seconds(self) -> float:
        return self.total_seconds - self.prefill_seconds

    @property
    def tokens_per_second(self) -> float | None:
        return self.new_tokens / self.decode_seconds if self.new_tokens and self.decode_seconds > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """All fields and derived rates, ready for JSON."""
        return asdict(self) | {name: getattr(self, name) for name in RATES}


@dataclass
class Generation:
    """A finished generation: `ids` are the new tokens, a final EOS included; `text` is without special tokens."""

    ids: list[int]
    text: str
    stats: DecodeStats


def sum_stats(parts: Iterable[DecodeStats]) -> DecodeStats:
    """Counts and seconds of several generations added up (lists joined): its rates are ratios of sums."""
    total = DecodeStats()
    added = [item.name for item in fields(DecodeStats) if item.name not in ("method", "mode", "stop_reason")]
    for part in parts:
        total = replace(part, **{name: getattr(total, name) + getattr(part, name) for name in added})
    return total
