"""Selection of the trace for a rule, and of the times of a draft step and a target forward.

Acceptance cannot be simulated. It is taken from a run under the same rule if one was recorded, else from the first
file; `SelectedTrace.note` says so then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.profile import Profile
from pdevis.simulate.replay import first_forward_tokens
from pdevis.simulate.trace_reader import Trace, read_trace
from pdevis.util.labels import format_rule

MIN_TIMINGS = 3  # timings of one kind below which their median is not used
PAIR_LABELS = ("target", "drafter", "target_precision", "draft_precision", "target_device")
DIFFERENCES = {
    "mode": "in this mode",
    "threshold": "at this threshold",
    "attention_lanes": "with this number of attention lanes",
    "mlp_lanes": "with this number of MLP lanes",
    "keep_first": "with these first layers kept",
    "keep_last": "with these last layers kept",
    "check": "with this check",
    "schedule": "with this schedule",
}


# ---- the trace of a rule ----


@dataclass(frozen=True)
class SelectedTrace:
    """The trace that a rule is simulated on.

    `note` says in what its acceptance differs from the rule's; None if it was recorded under this rule.
    """

    trace: Trace
    note: str | None


def read_traces(paths: Sequence[Path]) -> list[Trace]:
    """Read the traces of one pair, and join those recorded under the same rule.

    Raises:
        ValueError: as `read_trace`; also for traces of different pairs, and for one without rounds.
    """
    joined: dict[DraftConfig, Trace] = {}
    first: Trace | None = None
    for path in paths:
        trace = read_trace(path)
        first = first or trace
        if not any(trace.rounds):
            raise ValueError(f"{path}: has no rounds; a run that decodes speculatively records them")
        for name, expected, value in _compared_properties(first, trace):
            if expected != value:
                raise ValueError(
                    f"{path}: has {name} {value}, must be {expected} as in {first.name}: all traces must be of one pair"
                )
        if earlier := joined.get(trace.rule):
            generations = earlier.generations + trace.generations
            trace = replace(earlier, name=f"{earlier.name} + {trace.name}", generations=generations)
        joined[trace.rule] = trace
    return list(joined.values())


def _compared_properties(first: Trace, second: Trace) -> list[tuple[str, object, object]]:
    pair = [(name, first.pair.get(name), second.pair.get(name)) for name in PAIR_LABELS]
    return [*pair, ("layers", first.layers, second.layers), ("sizes", first.sizes, second.sizes)]


def select_trace(traces: Sequence[Trace], rule: DraftConfig) -> SelectedTrace:
    """Return the trace recorded under a rule, else one of its mode and threshold, else the first one."""
    best = min(traces, key=lambda trace: _distance(differences(rule, trace.rule)))
    names = differences(rule, best.rule)
    if not names:
        return SelectedTrace(best, note=None)
    not_measured = ", ".join(DIFFERENCES[name] for name in names)
    recorded = format_rule(best.rule, "lanes")
    return SelectedTrace(best, note=f"acceptance as recorded in mode {recorded}: not measured {not_measured}")


def _distance(names: Sequence[str]) -> int:
    """Return 0, 1 or 2. Among equals `min` takes the first, so larger differences are not ordered further."""
    return 2 if {"mode", "threshold"} & set(names) else 1 if names else 0


def differences(rule: DraftConfig, recorded: DraftConfig) -> list[str]:
    """Return the settings by which two rules can differ in acceptance.

    One attention lane is `exact`, whatever the threshold.
    """
    simulated, recorded = _as_exact(rule), _as_exact(recorded)
    if simulated.mode != recorded.mode:
        return ["mode"]
    if simulated.check == "static" and simulated.mode != "exact":
        names = ["check", "schedule"]
    else:
        planned = [name for name in DIFFERENCES if name != "schedule"]
        skip = ["threshold", "keep_first", "keep_last", "check"]
        names = {"exact": [], "skip": skip, "parallel": planned}[simulated.mode]
    return [name for name in names if getattr(simulated, name) != getattr(recorded, name)]


def _as_exact(rule: DraftConfig) -> DraftConfig:
    single_lane = rule.mode == "parallel" and rule.attention_lanes == 1
    return replace(rule, mode="exact") if single_lane else rule


# ---- times ----


@dataclass(frozen=True)
class Timing:
    """Times of an exact draft step on one device and of a target forward over k tokens, and their sources.

    `token_seconds`: added to a drafter's forward by each further token.
    """

    costs: RoundCosts
    draft_from: str
    verify_from: str
    token_seconds: float = 0.0


def find_timing(
    traces: Sequence[Trace],
    profile: Profile | None = None,
    *,
    draft_ms: float | None = None,
    target_ms: float | None = None,
    token_ms: float | None = None,
) -> Timing:
    """Return the times given by the flags, else those of the profile, else those of the traces.

    The traced time of a further token is scaled as the time of a draft step is by a flag or a profile.

    Raises:
        ValueError: none of them has the time of an exact draft step, or of a target forward.
    """
    if target_ms is not None:
        verify, verify_from = {1: target_ms / 1000}, "--target_ms"
    elif profile:
        verify, verify_from = dict(profile.costs.verify_seconds), profile.name
    else:
        verify, verify_from = _traced_verify_seconds(traces), "median of the traces"
    traced = _traced_exact_steps(traces)
    if draft_ms is not None:
        draft, draft_from = draft_ms / 1000, "--draft_ms"
    elif profile and profile.draft.mode == "exact":
        draft, draft_from = profile.costs.draft_seconds, profile.name
    elif traced.step_seconds:
        draft, draft_from = traced.step_seconds, "median of the exact traces"
    else:
        tuned = f" and --profile {profile.name} is for mode {profile.draft.mode}" if profile else ""
        raise ValueError(
            f"--draft_ms: missing, must be the ms of an exact draft step on one device, since no trace was recorded in "
            f"mode exact on one device without overlap{tuned}"
        )
    token = traced.token_seconds if token_ms is None else token_ms / 1000
    if token_ms is None and traced.step_seconds:  # of the machine of the trace: the proportion to a step is kept
        token *= draft / traced.step_seconds
    return Timing(RoundCosts(draft, verify, ()), draft_from, verify_from, token)


@dataclass(frozen=True)
class _TracedSteps:
    """Times of exact draft steps on one device, as traced."""

    step_seconds: float  # over one token; 0 if not traced
    token_seconds: float = 0.0  # added by a second token


def _traced_exact_steps(traces: Sequence[Trace]) -> _TracedSteps:
    """Return medians over the rounds that one device drafted exactly while nothing else ran."""
    timings: dict[int, list[tuple[int, float]]] = {1: [], 2: []}  # tokens of the first forward: (steps, seconds)
    for trace in traces:
        if trace.rule.mode != "exact" or "," in str(trace.pair.get("draft_device", "")):
            continue
        for generation in trace.generations:
            if generation.overlap:
                continue
            first_tokens = first_forward_tokens(generation.rounds, approximate=False)
            for traced, tokens in zip(generation.rounds, first_tokens, strict=True):
                if traced.steps and traced.draft_seconds > 0 and tokens in timings:
                    timings[tokens].append((traced.steps, traced.draft_seconds))
    one, two = timings[1], timings[2]
    if len(one) < MIN_TIMINGS or len(two) < MIN_TIMINGS:
        per_step = [seconds / steps for steps, seconds in one + two]
        return _TracedSteps(median(per_step) if per_step else 0.0)
    step = median(seconds / steps for steps, seconds in one)
    return _TracedSteps(step, token_seconds=max(0.0, median(seconds - steps * step for steps, seconds in two)))


def _traced_verify_seconds(traces: Sequence[Trace]) -> dict[int, float]:
    """Return medians by number of tokens if there are enough timings of any; else one median of all."""
    timings: dict[int, list[float]] = {}
    for trace in traces:
        for traced in trace.rounds:
            if traced.verify_seconds > 0:
                timings.setdefault(traced.drafted + 1, []).append(traced.verify_seconds)
    if not timings:
        raise ValueError("--target_ms: missing, must be the ms of a target forward, since the traces have none above 0")
    medians = {width: median(seconds) for width, seconds in sorted(timings.items()) if len(seconds) >= MIN_TIMINGS}
    all_seconds = [seconds for group in timings.values() for seconds in group]
    return medians or {max(timings, key=lambda width: len(timings[width])): median(all_seconds)}
