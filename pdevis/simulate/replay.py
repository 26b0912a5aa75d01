"""Replay of a trace: every recorded round is drafted again under another rule on other devices, in simulated time.

    trace = read_trace("run.jsonl")
    costs = StepCosts.divide(0.012, trace.layers, trace.sizes)  # an exact step on one device: 12 ms
    rule = DraftConfig(mode="parallel", threshold=0.9, window=2)
    drafts = simulate_drafts(trace, rule, costs, DeviceSet(2, link_seconds=30e-6))
    drafts.step_seconds, drafts.serial_depth

Drafted and accepted tokens stay as recorded; only the schedule of the drafter's layers changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pdevis.config import DraftConfig
from pdevis.drafting.schedule import exact_schedule, parse_schedule, plan_schedule
from pdevis.simulate.costs import DeviceSet, StepCosts
from pdevis.simulate.trace_reader import Trace
from pdevis.trace import TracedRound


@dataclass(frozen=True)
class SimulatedDraft:
    """The simulated draft of one round. `depth`: serial sublayer steps, summed over its forwards."""

    steps: int
    seconds: float
    depth: int


@dataclass(frozen=True)
class SimulatedDrafts:
    """The simulated drafts of all rounds, by generation."""

    generations: tuple[tuple[SimulatedDraft, ...], ...]

    @property
    def rounds(self) -> Iterator[SimulatedDraft]:
        return (draft for generation in self.generations for draft in generation)

    @property
    def step_seconds(self) -> float | None:
        """Mean time of a draft step; None if nothing was drafted."""
        return self._per_step(sum(draft.seconds for draft in self.rounds))

    @property
    def serial_depth(self) -> float | None:
        """Mean serial sublayer steps of a draft step; None if nothing was drafted."""
        return self._per_step(sum(draft.depth for draft in self.rounds))

    def _per_step(self, total: float) -> float | None:
        steps = sum(draft.steps for draft in self.rounds)
        return total / steps if steps else None


def simulate_drafts(
    trace: Trace, rule: DraftConfig, costs: StepCosts, devices: DeviceSet | None = None
) -> SimulatedDrafts:
    """Draft the rounds of a trace under a rule: the first forward of a round exactly, the others as planned from it.

    Raises:
        ValueError: the rule plans, and the trace has no similarities to plan from; the text of a static schedule is
            wrong.
    """
    assert rule.mode != "auto", "resolve the mode first"
    devices = devices or DeviceSet()
    approximate, is_static = rule.mode != "exact", rule.check == "static"
    if approximate and not is_static and not any(traced.passes for traced in trace.rounds):
        raise ValueError(
            f"{trace.name}: has no similarities, so that mode = {rule.mode!r} cannot be simulated; record a trace "
            "with --draft_mode exact, or of a drafter whose sublayers can be reached"
        )
    schedule = exact_schedule(trace.layers)
    later_seconds = costs.scheduled_seconds(schedule, devices) if approximate else costs.exact_seconds(devices)
    if approximate and is_static:
        schedule = parse_schedule(rule.schedule, trace.layers)
        later_seconds = costs.static_seconds(schedule, devices)
    generations = []
    for generation, tables in zip(trace.generations, trace.calibrations, strict=True):
        drafts = []
        first_tokens = first_forward_tokens(generation.rounds, approximate)
        for traced, table, tokens in zip(generation.rounds, tables, first_tokens, strict=True):
            if approximate and table and not is_static:
                schedule = plan_schedule(table, rule)
                later_seconds = costs.scheduled_seconds(schedule, devices)
            if not traced.steps:
                drafts.append(SimulatedDraft(0, seconds=0.0, depth=0))
                continue
            later_steps = traced.steps - 1
            first_seconds, first_depth = costs.exact_seconds(devices, tokens), 2 * trace.layers
            if not rule.calibrate and approximate:
                first_seconds, first_depth = later_seconds + (tokens - 1) * costs.token_seconds, schedule.depth
            seconds = first_seconds + later_steps * later_seconds
            depth = first_depth + later_steps * schedule.depth
            drafts.append(SimulatedDraft(traced.steps, seconds, depth))
        generations.append(tuple(drafts))
    return SimulatedDrafts(tuple(generations))


def first_forward_tokens(rounds: Iterable[TracedRound], approximate: bool) -> Iterator[int]:
    """Yield the number of tokens that each round's first forward reads.

    These are the confirmed tokens that the KV cache lacks. If drafts are `approximate`, it also reads those whose
    entries came from the last draft.
    """
    pending = 1  # the prompt's last token
    for traced in rounds:
        yield pending
        if not traced.steps:
            pending += traced.accepted + 1
        elif approximate:
            pending = traced.accepted + 1
        else:  # the cache lacks a draft's last token
            pending = 2 if traced.accepted == traced.drafted else 1


@dataclass
class RunTotals:
    """Sums over all rounds of a simulated run.

    `target_idle_seconds`: the target waited for drafts. `drafter_idle_seconds`: the drafter did nothing, or made a
    draft that was thrown away.
    """

    rounds: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    verify_seconds: float = 0.0
    target_idle_seconds: float = 0.0
    drafter_idle_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.target_idle_seconds + self.verify_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def simulate_rounds(
    trace: Trace,
    drafts: SimulatedDrafts,
    verify_seconds: Callable[[int], float],
    *,
    guess_seconds: float | None = None,
    contention: float = 1.0,
) -> RunTotals:
    """Simulate the rounds: draft, then verify; with overlap the next draft is made during this verification.

    Args:
        trace: the recorded rounds.
        drafts: their simulated drafts.
        verify_seconds: time of a target forward over this many tokens.
        guess_seconds: time of the forward that guesses the bonus token before the next draft begins; None: no overlap,
            so the drafter is idle during verification.
        contention: slowdown of target and drafter while both work.
    """
    totals = RunTotals()
    default_hit = acceptance_per_tested_token(trace)
    for generation, simulated in zip(trace.generations, drafts.generations, strict=True):
        hit = 0.0  # probability that this draft was begun during the last verification
        ahead_seconds = 0.0  # time that it then had; negative: its guess was still being computed
        for i, (traced, draft) in enumerate(zip(generation.rounds, simulated, strict=True)):
            verifying = verify_seconds(traced.drafted + 1)
            totals.rounds += 1
            totals.tokens += traced.accepted + 1
            totals.drafted += traced.drafted
            totals.accepted += traced.accepted
            totals.target_idle_seconds += draft.seconds - hit * min(ahead_seconds, draft.seconds)
            hit, ahead_seconds = 0.0, 0.0
            next_draft = simulated[i + 1] if i + 1 < len(simulated) else None
            if guess_seconds is not None and next_draft and next_draft.steps:
                hit, ahead_seconds = _hit_probability(traced, default_hit), verifying - guess_seconds
                slowed = verifying + (contention - 1) * min(verifying, guess_seconds + next_draft.seconds)
                totals.verify_seconds += slowed
                unused = max(0.0, ahead_seconds - next_draft.seconds)
                totals.drafter_idle_seconds += hit * unused + (1 - hit) * slowed
            else:
                totals.verify_seconds += verifying
                totals.drafter_idle_seconds += verifying
    return totals


def acceptance_per_tested_token(trace: Trace) -> float:
    """Return β, accepted over tested draft tokens: the probability that the drafter guesses the next token right."""
    accepted = sum(traced.accepted for traced in trace.rounds)
    rejected = sum(traced.accepted < traced.drafted for traced in trace.rounds)
    return accepted / (accepted + rejected) if accepted else 0.0


def _hit_probability(traced: TracedRound, default: float) -> float:
    """Return the probability that a draft made after this round's draft and the guessed bonus token can be used."""
    if not 0 < traced.drafted == traced.accepted:
        return 0.0
    return default if traced.guessed is None else float(traced.guessed)
