"""Result types of a generation, from one draft to its statistics.

Shapes: V = vocabulary of the target, G = draft tokens of one round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from torch import Tensor

StopReason = Literal["eos", "stop", "length", "context"]
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
    """Layer similarities of one exact drafter forward, recorded for a trace."""

    step: int  # index of the forward within the round
    tokens: int
    similarities: list[list[float]]  # cos(h_i, h_j) of its hidden states


@dataclass
class Draft:
    """Tokens that the drafter proposes in one round, and what they cost.

    `confidences` holds the drafter's probability of each token that the stopping rule was asked about. `own_seconds`
    and `idle_seconds` are measured by a drafter in a separate process: its computing time, and its time without work
    since the last draft. `ahead` is True if the draft was made while the target verified, False if such a draft was
    dropped, None if nothing was drafted ahead.
    """

    ids: list[int] = field(default_factory=list)
    probs: Tensor | None = None  # [G, V] distributions that the ids were sampled from; None if greedy
    skipped: float = 0.0  # layers taken off the serial path, summed over the draft tokens
    depth: int = 0  # serial sublayer steps, summed over the draft tokens
    steps: int = 0  # drafter forwards, those of tokens cut off after an EOS included
    confidences: list[float] = field(default_factory=list)
    own_seconds: float | None = None
    idle_seconds: float = 0.0
    ahead: bool | None = None
    invalid: bool = False  # ended early, maybe before its first token, at logits that are not finite
    passes: list[TracedPass] = field(default_factory=list)  # exact forwards, if they are traced


@dataclass(frozen=True)
class TokenLogprob:
    """The target's log-probability of a token, before any processing, and (id, log-probability) of the likeliest."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Verdict:
    """Verification result: the number of accepted draft tokens, and the bonus token that the target adds."""

    accepted: int
    bonus: int
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of both, if they are asked for


@dataclass
class Round:
    """One draft, its verification, and what both took.

    `DecodeStats.add`, `GammaPolicy.observe` and `RoundRecorder.record` all read it; nothing else carries statistics out
    of the decode loop.

    Args:
        draft_limit: draft tokens that this round could use; <= 0 at the end of the text or of the drafter's context.
        fallback: the policy chose plain decoding because drafting does not pay.
        concurrent: the drafter works while the target does, and measures its own idle time.
    """

    draft_limit: int = 0
    fallback: bool = False
    concurrent: bool = False
    draft: Draft = field(default_factory=Draft)
    verdict: Verdict | None = None
    confirmed: list[int] = field(default_factory=list)  # tokens added to the text: accepted ones and the bonus token
    stop_reason: StopReason | None = None  # set in the last round
    draft_prefill_seconds: float = 0.0  # the drafter reading a prompt that it had not read yet
    draft_seconds: float = 0.0  # the target waiting for the draft
    verify_seconds: float = 0.0
    total_seconds: float = 0.0  # of the whole round, time spent by the consumer of its tokens excluded

    @property
    def accepted(self) -> int:
        """Draft tokens that became part of the text; fewer than the target accepted if an EOS came first."""
        return min(self.verdict.accepted, len(self.confirmed))

    @property
    def drafter_seconds(self) -> float:
        """Computing time of the draft, without the transfer from another process."""
        return self.draft_seconds if self.draft.own_seconds is None else self.draft.own_seconds

    @property
    def drafter_idle_seconds(self) -> float:
        return self.draft.idle_seconds if self.concurrent else self.verify_seconds


@dataclass(frozen=True)
class TokenEvent:
    """One confirmed token. `text` is the text that it adds; it may be empty inside a multi-byte character."""

    id: int
    text: str
    source: Literal["draft", "target"]
    round: int
    logprob: TokenLogprob | None = None  # if `DecodeConfig.logprobs` asks for it


@dataclass
class DecodeStats:
    """Counts and seconds of one generation. Rates are properties: seconds and counts are stored and divided at the end.

    `rounds` is the number of target forwards after the prompt; `accept_lengths[i]` counts the tokens that round i
    added, bonus token included, so that they sum to `new_tokens`; `draft_lengths[i]` counts the tokens drafted for it.
    `fallback_rounds` were decoded plainly because drafting did not pay. `invalid_drafts` ended early, maybe before
    their first token, because the drafter's logits were not finite. `skipped` and `depth` are sums over all
    `draft_steps`, the first one of each round (an exact pass when calibrating) included.

    `draft_seconds` is the target's idle time, waiting for drafts; `drafter_idle_seconds` the drafter's. With overlap,
    `ahead_rounds` used a draft that was made ahead, `ahead_dropped` drafts were made ahead and not used.
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
    invalid_drafts: int = 0
    ahead_rounds: int = 0
    ahead_dropped: int = 0
    skipped: float = 0.0
    depth: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    drafter_idle_seconds: float = 0.0
    total_seconds: float = 0.0
    stop_reason: StopReason | None = None  # None: not finished

    def add_prefill(self, seconds: float) -> None:
        """Count the target's prefill, and that of a drafter that reads the prompt meanwhile."""
        self.prefill_seconds += seconds
        self.total_seconds += seconds

    def add(self, round: Round) -> None:
        """Count a finished round."""
        draft = round.draft
        self.rounds += 1
        self.new_tokens += len(round.confirmed)
        self.drafted += len(draft.ids)
        self.draft_steps += draft.steps
        self.accepted += round.accepted
        self.accept_lengths.append(len(round.confirmed))
        self.draft_lengths.append(len(draft.ids))
        self.fallback_rounds += round.fallback
        self.invalid_drafts += draft.invalid
        self.ahead_rounds += draft.ahead is True
        self.ahead_dropped += draft.ahead is False
        self.skipped += draft.skipped
        self.depth += draft.depth
        self.prefill_seconds += round.draft_prefill_seconds
        self.draft_seconds += round.draft_seconds
        self.verify_seconds += round.verify_seconds
        self.drafter_idle_seconds += round.drafter_idle_seconds
        self.total_seconds += round.total_seconds
        self.stop_reason = round.stop_reason

    @property
    def acceptance_rate(self) -> float | None:
        """α, accepted over drafted tokens; None if nothing was drafted."""
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

    @classmethod
    def sum(cls, parts: Iterable[DecodeStats]) -> DecodeStats:
        """Counts and seconds of several generations added up (lists joined): rates become ratios of sums."""
        total = cls()
        summed = [item.name for item in fields(cls) if item.name not in ("method", "mode", "stop_reason")]
        for part in parts:
            total = replace(part, **{name: getattr(total, name) + getattr(part, name) for name in summed})
        return total


@dataclass
class Generation:
    """A finished generation: `ids` are the new tokens, a final EOS included; `text` is without special tokens."""

    ids: list[int]
    text: str
    stats: DecodeStats
