"""How many tokens to draft: a fixed γ, or one chosen in every round by expected tokens per second (`gamma="auto"`).

A round of g draft tokens brings E(g) = 1 + β_1 + β_1 β_2 + … tokens, where β_i is the probability that position i is
accepted given that it is tested, and takes g draft steps and a target forward over g + 1 tokens. `AutoGamma` measures
all three as it decodes, drafts as long as one more token brings more than its time is worth at the best rate known
(the stopping rule of renewal-reward processes), and decodes plainly where no g beats g = 0.

Whether to go on depends on the tokens drafted so far, all of which are verified, and never on the token to come: so
sampling stays lossless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from pdevis.config import AUTO, DecodeConfig
from pdevis.generation import Draft

MAX_GAMMA = 16  # draft tokens of a round at most
INITIAL_GAMMA = 2  # draft tokens of the very first round, before anything is known
TIMING_WINDOW = 9  # timings of a kind that are remembered
DECAY = 0.98  # what a round leaves of the weight of those before it
PRIOR = 0.7  # acceptance before anything is known, worth PRIOR_WEIGHT observations
PRIOR_WEIGHT = 4.0
BINS = 8  # of the drafter's confidence
PROBE_SHARE = 0.015  # of plain decoding's time that trying out speculation again may take
NEAR_BREAK_EVEN = 1.3  # a speedup below this is close enough to 1 to keep an eye on plain decoding's own time
PLAIN_PROBE_INTERVAL = 64  # rounds between two looks at it


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of one round; `start`: the drafter's for a prompt that it had not read yet."""

    draft: float
    verify: float
    start: float = 0.0


class GammaPolicy(Protocol):
    """Decides each round's draft length."""

    rule: StoppingRule | None  # of the round that has been opened; None: draft all tokens
    falls_back: bool  # whether this round is plain because drafting does not pay

    def choose(self, limit: int) -> int:
        """Draft tokens of the round that begins, at most `limit` (>= 1); 0: decode plainly."""
        ...

    def observe(self, draft: Draft, accepted: int, times: RoundTimes) -> None:
        """Learn from the round that ends."""
        ...


class FixedGamma:
    """γ draft tokens in every round."""

    rule = None
    falls_back = False

    def __init__(self, gamma: int) -> None:
        self.gamma = gamma

    def choose(self, limit: int) -> int:
        return min(self.gamma, limit)

    def observe(self, draft: Draft, accepted: int, times: RoundTimes) -> None:
        pass


@dataclass(frozen=True)
class RoundCosts:
    """What decides γ.

    Args:
        draft_seconds: of one draft step.
        verify_seconds: of a target forward over k tokens, for some k.
        acceptance: β_1, β_2, …: the last one holds for all positions behind.
    """

    draft_seconds: float
    verify_seconds: dict[int, float]
    acceptance: Sequence[float]

    def verify(self, tokens: int) -> float:
        """Seconds of a forward over `tokens` tokens: between measured k interpolated, beyond them the nearest."""
        known = sorted(self.verify_seconds)
        below = max((k for k in known if k <= tokens), default=known[0])
        above = min((k for k in known if k >= tokens), default=known[-1])
        if below == above or not below <= tokens <= above:
            return self.verify_seconds[below if tokens >= below else above]
        share = (tokens - below) / (above - below)
        return (1 - share) * self.verify_seconds[below] + share * self.verify_seconds[above]

    def position(self, index: int) -> float:
        """β of draft position `index`, counted from 0."""
        return self.acceptance[min(index, len(self.acceptance) - 1)]

    def expected_tokens(self, gamma: int) -> float:
        """E(γ), the bonus token included."""
        total = reach = 1.0
        for index in range(gamma):
            reach *= self.position(index)
            total += reach
        return total

    def rate(self, gamma: int) -> float:
        """Tokens per second at γ; 0 is plain decoding."""
        return self.expected_tokens(gamma) / (gamma * self.draft_seconds + self.verify(gamma + 1))

    def best_gamma(self, most: int = MAX_GAMMA) -> int:
        return max(range(most + 1), key=self.rate)


@dataclass
class DecayedRate:
    """A running acceptance: successes and trials, the older the lighter."""

    passed: float = 0.0
    tested: float = 0.0

    def add(self, passed: bool) -> None:
        self.passed, self.tested = DECAY * self.passed + passed, DECAY * self.tested + 1

    def estimate(self, prior: float) -> float:
        return (self.passed + PRIOR_WEIGHT * prior) / (self.tested + PRIOR_WEIGHT)


@dataclass
class StoppingRule:
    """Whether a draft goes on, token by token; it travels to the process that drafts.

    Args:
        costs: None: nothing is known yet, and the draft goes on.
        rate: the best tokens per second known.
        limit: draft tokens of the round at most.
        bins: how often tokens of each confidence are accepted.
    """

    costs: RoundCosts | None
    rate: float
    limit: int
    bins: tuple[DecayedRate, ...]
    drafted: int = 0
    reach: float = 1.0  # the probability that all tokens so far are accepted

    def should_continue(self, confidence: float) -> bool:
        """Whether to draft another token, after one that the drafter gave this probability."""
        self.drafted += 1
        if self.costs is None:
            return True
        self.reach *= self.bins[_bin(confidence)].estimate(confidence)
        costs = self.costs
        gain, reach, now = 0.0, self.reach, costs.verify(self.drafted + 1)
        for more in range(1, self.limit - self.drafted + 1):
            reach *= costs.position(self.drafted + more - 1)
            gain += reach
            if gain > self.rate * (more * costs.draft_seconds + costs.verify(self.drafted + more + 1) - now):
                return True
        return False


def _recent() -> deque[float]:
    return deque(maxlen=TIMING_WINDOW)


@dataclass
class AutoGamma:
    """γ by expected tokens per second. What it learns outlives a generation; one object per pair and draft settings.

    Args:
        known: costs from a profile to begin with; they give way to what is measured.
    """

    known: RoundCosts | None = None
    rule: StoppingRule | None = field(default=None, init=False)
    _drafts: deque[float] = field(default_factory=_recent, init=False)
    _verifies: dict[int, deque[float]] = field(default_factory=dict, init=False)
    _positions: list[DecayedRate] = field(default_factory=lambda: [DecayedRate() for _ in range(MAX_GAMMA)], init=False)
    _bins: list[DecayedRate] = field(default_factory=lambda: [DecayedRate() for _ in range(BINS)], init=False)
    _since_plain: int = field(default=0, init=False)  # rounds
    _since_draft: int = field(default=0, init=False)
    _pause: int = field(default=0, init=False)  # plain rounds before speculation is tried out again
    falls_back: bool = field(default=False, init=False)  # whether this round is plain because drafting does not pay

    def choose(self, limit: int) -> int:
        limit = min(limit, MAX_GAMMA)
        costs = self._measured()
        self.falls_back = False
        self.rule = StoppingRule(costs, costs.rate(costs.best_gamma()) if costs else 0.0, limit, tuple(self._bins))
        if costs is None:
            return min(INITIAL_GAMMA, limit)
        if costs.best_gamma() == 0:
            self.falls_back = self._since_draft < self._pause
            return 0 if self.falls_back else min(INITIAL_GAMMA, limit)
        unseen = 1 not in costs.verify_seconds
        if unseen or (self.rule.rate < NEAR_BREAK_EVEN * costs.rate(0) and self._since_plain >= PLAIN_PROBE_INTERVAL):
            return 0
        return limit

    def observe(self, draft: Draft, accepted: int, times: RoundTimes) -> None:
        drafted = len(draft.ids)
        self._verifies.setdefault(drafted + 1, _recent()).append(times.verify)
        if not drafted:
            self._since_plain, self._since_draft = 0, self._since_draft + 1
            return
        caught_up = self._since_draft > 0  # this draft's first forward had more to read than a draft token
        self._since_plain, self._since_draft = self._since_plain + 1, 0
        if not caught_up or not self._drafts:
            self._drafts.append(times.draft / draft.steps)
        for place in range(min(accepted + 1, drafted)):
            passed = place < accepted
            self._positions[min(place, MAX_GAMMA - 1)].add(passed)
            if place < len(draft.confidences):
                self._bins[_bin(draft.confidences[place])].add(passed)
        costs = self._measured()
        if costs and costs.best_gamma() == 0:  # how long to keep away from it, so that trying costs little
            plain = costs.verify(1)
            lost = max(times.start + times.draft + times.verify - (accepted + 1) * plain, 0.0)
            self._pause = max(int(lost / (PROBE_SHARE * plain)), 2 * INITIAL_GAMMA)

    def _measured(self) -> RoundCosts | None:
        """The costs so far; None before the first draft, where no profile told them."""
        if not self._drafts:
            return self.known
        verify = dict(self.known.verify_seconds) if self.known else {}
        verify |= {k: median(seconds) for k, seconds in self._verifies.items()}
        acceptance: list[float] = []
        before = PRIOR
        for index, share in enumerate(self._positions):
            prior = self.known.position(index) if self.known else before
            before = share.estimate(prior)
            acceptance.append(before)
        return RoundCosts(median(self._drafts), verify, acceptance)


def _bin(confidence: float) -> int:
    return min(int(confidence * BINS), BINS - 1)


def gamma_policy(config: DecodeConfig, auto: AutoGamma | None = None) -> GammaPolicy:
    """The policy that a generation's settings ask for; `auto` carries what earlier generations have learnt."""
    if config.gamma == AUTO:
        return auto or AutoGamma()
    return FixedGamma(config.gamma)
