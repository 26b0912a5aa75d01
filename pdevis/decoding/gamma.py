"""Draft length γ: fixed, or chosen in every round by expected tokens per second (`gamma="auto"`).

A round of g draft tokens yields E(g) = 1 + β_1 + β_1 β_2 + … tokens, where β_i is the probability that position i is
accepted given that it is tested, and takes g draft steps and a target forward over g + 1 tokens. `AutoGamma` measures
all three as it decodes, drafts as long as one more token yields more than its time is worth at the best rate known
(the stopping rule of renewal-reward processes), and decodes plainly if no g beats g = 0.

Whether to continue depends on the tokens drafted so far, all of which are verified, and never on the token to come: so
sampling stays lossless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from pdevis.config import AUTO, DecodeConfig
from pdevis.generation import Round

MAX_GAMMA = 15  # upper limit of the draft length: with the confirmed token one tile of a GPU's matrix units
INITIAL_GAMMA = 2  # draft length of the very first round, before anything is known
TIMING_WINDOW = 9  # recent timings of each kind that the median is taken over
DECAY = 0.98  # factor per round on the weight of earlier rounds
PRIOR = 0.7  # acceptance assumed before anything is known, worth PRIOR_WEIGHT observations
PRIOR_WEIGHT = 4.0
BINS = 8  # of the drafter's confidence
PROBE_SHARE = 0.015  # fraction of plain decoding's time that probing speculation again may take
NEAR_BREAK_EVEN = 1.3  # below this speedup, plain decoding's own time is measured again now and then
PLAIN_PROBE_INTERVAL = 64  # rounds between two such measurements


class GammaPolicy(Protocol):
    """Decides each round's draft length."""

    falls_back: bool  # the round just chosen is plain because drafting does not pay

    @property
    def should_continue(self) -> Callable[[float], bool] | None:
        """Stopping rule of the round just chosen, called with each token's confidence; None: draft all γ tokens."""
        ...

    def choose(self, limit: int) -> int:
        """Return γ of the round that begins, at most `limit`; 0: decode plainly, as always if `limit` is below 1."""
        ...

    def observe(self, round: Round) -> None:
        """Learn from the round that ends."""
        ...


class FixedGamma:
    """γ draft tokens in every round."""

    should_continue = None
    falls_back = False

    def __init__(self, gamma: int) -> None:
        self.gamma = gamma

    def choose(self, limit: int) -> int:
        return max(0, min(self.gamma, limit))

    def observe(self, round: Round) -> None:
        pass


@dataclass(frozen=True)
class RoundCosts:
    """Costs and acceptance that decide γ.

    Args:
        draft_seconds: time of one draft step.
        verify_seconds: time of a target forward over k tokens, for some k.
        acceptance: β_1, β_2, …; the last one holds for all later positions.
    """

    draft_seconds: float
    verify_seconds: dict[int, float]
    acceptance: Sequence[float]

    def verify(self, tokens: int) -> float:
        """Return the seconds of a forward over `tokens` tokens: interpolated between measured k, else the nearest."""
        known = sorted(self.verify_seconds)
        below = max((k for k in known if k <= tokens), default=known[0])
        above = min((k for k in known if k >= tokens), default=known[-1])
        if below == above or not below <= tokens <= above:
            return self.verify_seconds[below if tokens >= below else above]
        fraction = (tokens - below) / (above - below)
        return (1 - fraction) * self.verify_seconds[below] + fraction * self.verify_seconds[above]

    def position(self, index: int) -> float:
        """Return β of draft position `index`, counted from 0."""
        return self.acceptance[min(index, len(self.acceptance) - 1)]

    def expected_tokens(self, gamma: int) -> float:
        """Return E(γ), the bonus token included."""
        total = reach = 1.0
        for index in range(gamma):
            reach *= self.position(index)
            total += reach
        return total

    def rate(self, gamma: int) -> float:
        """Return tokens per second at γ; 0 is plain decoding."""
        return self.expected_tokens(gamma) / (gamma * self.draft_seconds + self.verify(gamma + 1))

    def best_gamma(self, max_gamma: int = MAX_GAMMA) -> int:
        return max(range(max_gamma + 1), key=self.rate)


@dataclass
class DecayedRate:
    """Acceptance rate over recent rounds: successes and trials, both decaying exponentially."""

    passed: float = 0.0
    tested: float = 0.0

    def add(self, passed: bool) -> None:
        self.passed, self.tested = DECAY * self.passed + passed, DECAY * self.tested + 1

    def estimate(self, prior: float) -> float:
        return (self.passed + PRIOR_WEIGHT * prior) / (self.tested + PRIOR_WEIGHT)


@dataclass
class StoppingRule:
    """Decides token by token if a draft continues. It is pickled to the process that drafts.

    Args:
        costs: None: nothing is known yet, and the draft continues.
        rate: the best tokens per second known.
        limit: upper limit of the draft length.
        bins: acceptance rate of tokens by confidence.
    """

    costs: RoundCosts | None
    rate: float
    limit: int
    bins: tuple[DecayedRate, ...]
    drafted: int = 0
    reach: float = 1.0  # probability that all tokens so far are accepted

    def should_continue(self, confidence: float) -> bool:
        """Return True if another token is to be drafted after one of this confidence."""
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


def _timings() -> deque[float]:
    return deque(maxlen=TIMING_WINDOW)


@dataclass
class AutoGamma:
    """γ by expected tokens per second. One object per pair and draft settings; it keeps learning across generations.

    Args:
        known: costs from a profile to begin with; measured ones replace them.
    """

    known: RoundCosts | None = None
    rule: StoppingRule | None = field(default=None, init=False)
    _drafts: deque[float] = field(default_factory=_timings, init=False)
    _verifies: dict[int, deque[float]] = field(default_factory=dict, init=False)
    _positions: list[DecayedRate] = field(default_factory=lambda: [DecayedRate() for _ in range(MAX_GAMMA)], init=False)
    _bins: list[DecayedRate] = field(default_factory=lambda: [DecayedRate() for _ in range(BINS)], init=False)
    _since_plain: int = field(default=0, init=False)  # rounds
    _since_draft: int = field(default=0, init=False)
    _pause: int = field(default=0, init=False)  # plain rounds before speculation is probed again
    falls_back: bool = field(default=False, init=False)

    @property
    def should_continue(self) -> Callable[[float], bool] | None:
        return self.rule.should_continue if self.rule else None

    def choose(self, limit: int) -> int:
        limit = min(limit, MAX_GAMMA)
        self.falls_back, self.rule = False, None
        if limit <= 0:
            return 0
        costs = self._measured()
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

    def observe(self, round: Round) -> None:
        if round.draft_limit <= 0:  # plain because nothing more could be drafted, which says nothing about costs
            return
        draft, accepted = round.draft, round.verdict.accepted
        drafted = len(draft.ids)
        self._verifies.setdefault(drafted + 1, _timings()).append(round.verify_seconds)
        if not drafted:
            self._since_plain, self._since_draft = 0, self._since_draft + 1
            return
        caught_up = self._since_draft > 0  # this draft's first forward read more than one token
        self._since_plain, self._since_draft = self._since_plain + 1, 0
        if not caught_up or not self._drafts:
            self._drafts.append(round.drafter_seconds / draft.steps)
        for position in range(min(accepted + 1, drafted)):
            passed = position < accepted
            self._positions[min(position, MAX_GAMMA - 1)].add(passed)
            if position < len(draft.confidences):
                self._bins[_bin(draft.confidences[position])].add(passed)
        costs = self._measured()
        if costs and costs.best_gamma() == 0:  # pause for long enough that probing costs little
            plain = costs.verify(1)
            spent = round.draft_prefill_seconds + round.drafter_seconds + round.verify_seconds
            lost = max(spent - (accepted + 1) * plain, 0.0)
            self._pause = max(int(lost / (PROBE_SHARE * plain)), 2 * INITIAL_GAMMA)

    def _measured(self) -> RoundCosts | None:
        """Return the costs so far; None before the first draft if no profile has them."""
        if not self._drafts:
            return self.known
        verify = dict(self.known.verify_seconds) if self.known else {}
        verify |= {k: median(seconds) for k, seconds in self._verifies.items()}
        acceptance: list[float] = []
        before = PRIOR
        for index, rate in enumerate(self._positions):
            prior = self.known.position(index) if self.known else before
            before = rate.estimate(prior)
            acceptance.append(before)
        return RoundCosts(median(self._drafts), verify, acceptance)


def _bin(confidence: float) -> int:
    return min(int(confidence * BINS), BINS - 1)


def gamma_policy(config: DecodeConfig, auto: AutoGamma | None = None) -> GammaPolicy:
    """Return the policy that `config.gamma` asks for; `auto` carries what earlier generations have learnt."""
    if config.gamma == AUTO:
        return auto or AutoGamma()
    return FixedGamma(config.gamma)
