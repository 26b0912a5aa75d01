"""From a trace to seconds: every recorded round is drafted anew under another rule, on other devices.

    trace = read_trace("run.jsonl")
    step = StepCosts.divide(0.012, trace.layers, trace.sizes)  # an exact step on one device: 12 ms
    drafting = predict(trace, DraftConfig(mode="parallel", threshold=0.9, window=2), step, Machine(2, 30e-6))
    drafting.step_seconds, drafting.serial_depth

What was drafted and accepted stays as recorded; only the drafter's way through its layers is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pdevis.config import DraftConfig
from pdevis.drafting.schedule import exact_schedule, plan_schedule
from pdevis.simulate.costs import Machine, StepCosts
from pdevis.simulate.trace_reader import Trace
from pdevis.trace import TracedRound


@dataclass(frozen=True)
class RoundDraft:
    """The drafter's part of one round. `depth`: serial sublayer steps, summed over its forwards."""

    steps: int
    seconds: float
    depth: int


@dataclass(frozen=True)
class Drafting:
    """The drafter's part of all rounds, by generation."""

    generations: tuple[tuple[RoundDraft, ...], ...]

    @property
    def rounds(self) -> Iterator[RoundDraft]:
        return (each for generation in self.generations for each in generation)

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds of a draft step; None where nothing was drafted."""
        return self._per_step(sum(each.seconds for each in self.rounds))

    @property
    def serial_depth(self) -> float | None:
        return self._per_step(sum(each.depth for each in self.rounds))

    def _per_step(self, total: float) -> float | None:
        steps = sum(each.steps for each in self.rounds)
        return total / steps if steps else None


def predict(trace: Trace, draft: DraftConfig, step: StepCosts, machine: Machine | None = None) -> Drafting:
    """What drafting the trace's rounds takes under a rule: a round's first forward exactly, the others as planned
    from it.

    Raises:
        ValueError: for a rule that plans, where the trace has nothing to plan from.
    """
    assert draft.mode != "auto", "resolve the mode first"
    machine = machine or Machine()
    plans = draft.mode != "exact"
    if plans and not any(each.passes for each in trace.rounds):
        raise ValueError(
            f"{trace.name}: has no similarities, so that mode = {draft.mode!r} cannot be simulated; record a trace "
            "with --draft_mode exact, or of a drafter whose sublayers can be reached"
        )
    schedule = exact_schedule(trace.layers)
    later = step.planned(schedule, machine) if plans else step.exact(machine)
    generations = []
    for generation, tables in zip(trace.generations, trace.calibrations, strict=True):
        drafts, tokens = [], first_tokens(generation.rounds, approximate=plans)
        for each, table, read in zip(generation.rounds, tables, tokens, strict=True):
            if plans and table:
                schedule = plan_schedule(table, draft)
                later = step.planned(schedule, machine)
            more = each.steps - 1
            seconds = step.exact(machine, read) + more * later
            depth = 2 * trace.layers + more * schedule.depth
            drafts.append(RoundDraft(each.steps, seconds, depth) if each.steps else RoundDraft(0, 0.0, 0))
        generations.append(tuple(drafts))
    return Drafting(tuple(generations))


def first_tokens(rounds: Iterable[TracedRound], approximate: bool) -> Iterator[int]:
    """The tokens that each round's first forward reads: those confirmed since, as far as the cache lacks them or
    holds them `approximate`ly."""
    waiting = 1  # the prompt's last token
    for each in rounds:
        yield waiting
        if not each.steps:
            waiting += each.accepted + 1
        elif approximate:
            waiting = each.accepted + 1
        else:  # the cache lacks a draft's last token
            waiting = 2 if each.accepted == each.drafted else 1


@dataclass
class Outcome:
    """Sums over all rounds. `target_idle`: seconds in which the target waited for drafts; `drafter_idle`: seconds in
    which the drafter did nothing, or what was thrown away."""

    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    verify_seconds: float = 0.0
    target_idle: float = 0.0
    drafter_idle: float = 0.0

    @property
    def seconds(self) -> float:
        return self.target_idle + self.verify_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def run_rounds(
    trace: Trace,
    drafting: Drafting,
    verify: Callable[[int], float],
    guess_seconds: float | None = None,
    contention: float = 1.0,
) -> Outcome:
    """Round after round: draft, then verify; under overlap the next draft is made during this verification.

    Args:
        verify: seconds of a target forward over so many tokens.
        guess_seconds: of the forward that guesses the target's own token, before a draft ahead begins; None: no
            overlap, so that the drafter idles while the target works.
        contention: how many times as long target and drafter take while both work.
    """
    total = Outcome()
    likely = guess_rate(trace)
    for generation, drafts in zip(trace.generations, drafting.generations, strict=True):
        hit, left = 0.0, 0.0  # probability that this draft was begun ahead; seconds that it had, below 0: still to wait
        for place, (each, draft) in enumerate(zip(generation.rounds, drafts, strict=True)):
            verifying = verify(each.drafted + 1)
            total.rounds += 1
            total.tokens += each.accepted + 1
            total.drafted += each.drafted
            total.accepted += each.accepted
            total.target_idle += draft.seconds - hit * min(left, draft.seconds)
            hit, left = 0.0, 0.0
            after = drafts[place + 1] if place + 1 < len(drafts) else None
            if guess_seconds is not None and after and after.steps:
                hit, left = _hit(each, likely), verifying - guess_seconds
                slowed = verifying + (contention - 1) * min(verifying, guess_seconds + after.seconds)
                total.verify_seconds += slowed
                total.drafter_idle += hit * max(0.0, left - after.seconds) + (1 - hit) * slowed
            else:
                total.verify_seconds += verifying
                total.drafter_idle += verifying
    return total


def guess_rate(trace: Trace) -> float:
    """β, accepted over tested draft tokens: how likely the drafter's guess of one more token is right."""
    accepted = sum(each.accepted for each in trace.rounds)
    rejected = sum(each.accepted < each.drafted for each in trace.rounds)
    return accepted / (accepted + rejected) if accepted else 0.0


def _hit(each: TracedRound, likely: float) -> float:
    """The probability that a draft behind this round's draft and the guess is right."""
    if not 0 < each.drafted == each.accepted:
        return 0.0
    return likely if each.guessed is None else float(each.guessed)
