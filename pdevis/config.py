"""The dataclasses that travel between the parts of pdevis, and nothing else.

Settings (`DraftConfig`, `DecodeConfig`) are frozen and check themselves: what a user can get wrong raises `ValueError`
naming the value and what is allowed. Results (`Draft`, `Verdict`, `TokenEvent`, `DecodeStats`, `Generation`) carry.

Shapes: V = vocabulary of the target, G = draft tokens of one round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pdevis.util.validation import check_flag, check_number, check_one_of, check_whole

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    from torch import Tensor

AUTO, RANKS = "auto", "ranks"  # ranks, as a device: the processes that torchrun has started
MODES = (AUTO, "exact", "skip", "parallel")
CHECKS = ("inline", "planned")
RATES = "acceptance_rate mean_accept_length mean_skip serial_depth target_idle_per_round drafter_idle_per_round "
RATES += "decode_seconds tokens_per_second"  # derived figures of DecodeStats


@dataclass(frozen=True)
class DraftConfig:
    """How the drafter's layers run: the rule (`mode`), when it is checked (`check`), and its bounds.

    Args:
        mode: `exact` (plain drafter), `skip` (drop redundant layers), `parallel` (run layers side by side), or `auto`.
        threshold: τ, a cosine. A layer is redundant, a lane is kept, where the cosine is above it. Above 1: never.
        check: `inline` decides per draft token, `planned` once per round from the calibration pass.
        window: W, layers that start from the same hidden state at the same time.
        attention_window: lanes of attention in a group; None: `window`.
        mlp_window: lanes of MLP inside a group; None: min(`window`, 2), since MLPs tolerate less.
        keep_first, keep_last: layers at the two ends that are never dropped and never run beside another.
        calibrate: recompute the confirmed tokens' approximate KV entries exactly, once per round.
    """

    mode: Literal["auto", "exact", "skip", "parallel"] = "auto"
    threshold: float = 0.9
    check: Literal["inline", "planned"] = "planned"
    window: int = 2
    attention_window: int | None = None
    mlp_window: int | None = None
    keep_first: int = 2
    keep_last: int = 1
    calibrate: bool = True

    def __post_init__(self) -> None:
        check_one_of("mode", self.mode, MODES)
        check_one_of("check", self.check, CHECKS)
        check_number("threshold", self.threshold)
        check_whole("window", self.window, 1)
        for name in ("attention_window", "mlp_window"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_whole("keep_first", self.keep_first, 0)
        check_whole("keep_last", self.keep_last, 0)
        check_flag("calibrate", self.calibrate)
        if self.check == "planned" and not self.calibrate and self.mode in ("skip", "parallel"):
            raise ValueError(
                "check = 'planned' with calibrate = False: must be 'inline', since plans come from calibration passes"
            )

    @property
    def attention_lanes(self) -> int:
        return self.attention_window or self.window

    @property
    def mlp_lanes(self) -> int:
        return self.mlp_window or min(self.window, 2)


@dataclass(frozen=True)
class DecodeConfig:
    """How one generation decodes.

    Args:
        max_new_tokens: limit on the tokens written, EOS included.
        gamma: γ, draft tokens per round; "auto" chooses in every round what promises most tokens per second, and
            none where plain decoding is faster.
        temperature: 0 is greedy (argmax, no random numbers); above 0 both models sample with these settings.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
        seed: of this generation's own random generators; None: a fresh one.
        eos_ids: ids that end the text; None: the target's generation config, (): nothing ends it before the limit.
        reuse_prefix: keep the caches' entries for the part of the prompt that the last generation shares with it.
        overlap: the drafter goes on while the target verifies; it must run in a process of its own.
    """

    max_new_tokens: int = 128
    gamma: int | Literal["auto"] = 4
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    eos_ids: tuple[int, ...] | None = None
    reuse_prefix: bool = False
    overlap: bool = False

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 0)
        if self.gamma != AUTO:
            check_whole("gamma", self.gamma, 1, f" or {AUTO!r}")
        check_number("temperature", self.temperature, least=0)
        if 0 < self.temperature < 1e-6:  # divided by less, logits overflow
            raise ValueError(f"temperature = {self.temperature!r}: must be 0 (greedy) or at least 1e-06")
        check_whole("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, least=1e-6, most=1)
        if self.seed is not None:
            check_whole("seed", self.seed, 0)
            check_number("seed", self.seed, most=2**62)
        if self.eos_ids is not None and not isinstance(self.eos_ids, Iterable):
            raise ValueError(f"eos_ids = {self.eos_ids!r}: must be a tuple of ids")
        for token in self.eos_ids or ():
            check_whole("eos_ids", token, 0)
        check_flag("overlap", self.overlap)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


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
        return asdict(self) | {name: getattr(self, name) for name in RATES.split()}


@dataclass
class Generation:
    """A finished generation: `ids` are the new tokens, a final EOS included; `text` is without special tokens."""

    ids: list[int]
    text: str
    stats: DecodeStats
