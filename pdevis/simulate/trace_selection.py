"""What the given files tell: rounds recorded under a rule, and what drafting and verifying cost.

Acceptance cannot be simulated: it is that of a run under the same rule where one was recorded, else that of the first
file, and whoever shows it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.profile import Profile
from pdevis.simulate.replay import first_tokens
from pdevis.simulate.trace_reader import Trace, read_trace

ENOUGH = 3  # timings of target forwards of one width, to go by
LABELS = ("target", "drafter", "target_precision", "draft_precision", "target_device")
DIFFERENCES = {
    "mode": "in this mode",
    "threshold": "at this threshold",
    "attention_lanes": "with so many lanes of attention",
    "mlp_lanes": "with so many lanes of MLP",
    "keep_first": "with these first layers kept",
    "keep_last": "with these last layers kept",
    "check": "with the planned check",
}


@dataclass(frozen=True)
class Chosen:
    """The rounds that a rule is simulated on. `note`: why their acceptance is not that of the rule; None: it is."""

    trace: Trace
    note: str | None


def read_traces(paths: Sequence[Path]) -> list[Trace]:
    """The traces of one pair, those recorded under the same rule joined.

    Raises:
        ValueError: as `read_trace`; for traces of different pairs, and one without rounds.
    """
    joined: dict[DraftConfig, Trace] = {}
    first: Trace | None = None
    for path in paths:
        trace = read_trace(path)
        first = first or trace
        if not any(trace.rounds):
            raise ValueError(f"{path}: has no rounds; a run that decodes speculatively records them")
        for name, ours, theirs in _facts(first, trace):
            if ours != theirs:
                raise ValueError(f"{path}: has {name} {theirs}, must be {ours} as in {first.name}: traces of one pair")
        before = joined.get(trace.rule)
        if before:
            name, generations = f"{before.name} + {trace.name}", before.generations + trace.generations
            trace = replace(before, name=name, generations=generations)
        joined[trace.rule] = trace
    return list(joined.values())


def _facts(one: Trace, other: Trace) -> list[tuple[str, object, object]]:
    pairs = [(name, one.pair.get(name), other.pair.get(name)) for name in LABELS]
    return [*pairs, ("layers", one.layers, other.layers), ("sizes", one.sizes, other.sizes)]


def choose(traces: Sequence[Trace], draft: DraftConfig) -> Chosen:
    """The rounds for a rule: recorded under it, else in its mode at its threshold, else those of the first trace."""
    best = min(traces, key=lambda trace: _distance(differences(draft, trace.rule)))
    found = differences(draft, best.rule)
    if not found:
        return Chosen(best, None)
    missing = ", ".join(DIFFERENCES[name] for name in found)
    return Chosen(best, f"acceptance as recorded in mode {rule_name(best.rule)}: not measured {missing}")


def _distance(found: Sequence[str]) -> int:
    """The first of equals is taken, so that what differs more counts as equal."""
    return 2 if {"mode", "threshold"} & set(found) else 1 if found else 0


def differences(draft: DraftConfig, recorded: DraftConfig) -> list[str]:
    """In what two rules would accept differently. One lane is `exact`, whatever the threshold."""
    ours, theirs = _plain(draft), _plain(recorded)
    if ours.mode != theirs.mode:
        return ["mode"]
    names = {"exact": [], "skip": ["threshold", "keep_first", "keep_last", "check"], "parallel": list(DIFFERENCES)}
    return [name for name in names[ours.mode] if getattr(ours, name) != getattr(theirs, name)]


def _plain(rule: DraftConfig) -> DraftConfig:
    alone = rule.mode == "parallel" and rule.attention_lanes == 1
    return replace(rule, mode="exact") if alone else rule


def rule_name(rule: DraftConfig) -> str:
    lanes = f", {rule.attention_lanes} + {rule.mlp_lanes} lanes" if rule.mode == "parallel" else ""
    return rule.mode if rule.mode == "exact" else f"{rule.mode} τ={rule.threshold:g}{lanes}"


@dataclass(frozen=True)
class Timing:
    """Seconds of an exact draft step on one device and of a target forward over k tokens, and whence they come;
    `token_seconds`: what each further token adds to a drafter's forward."""

    costs: RoundCosts
    draft_from: str
    verify_from: str
    token_seconds: float = 0.0


def find_timing(
    traces: Sequence[Trace],
    draft_ms: float | None,
    target_ms: float | None,
    profile: Profile | None,
    token_ms: float | None = None,
) -> Timing:
    """Times from the flags, else from the profile, else from the traces themselves.

    Raises:
        ValueError: where nothing tells the time of an exact draft step, or of a target forward.
    """
    if target_ms is not None:
        verify, verify_from = {1: target_ms / 1000}, "--target_ms"
    elif profile:
        verify, verify_from = dict(profile.costs.verify_seconds), profile.name
    else:
        verify, verify_from = _verify_seconds(traces), "median of the traces"
    exact, token = _exact_steps(traces)
    if draft_ms is not None:
        draft, draft_from = draft_ms / 1000, "--draft_ms"
    elif profile and profile.draft.mode == "exact":
        draft, draft_from = profile.costs.draft_seconds, profile.name
    elif exact:
        draft, draft_from = exact, "median of the exact traces"
    else:
        tuned = f" and --profile {profile.name} is for mode {profile.draft.mode}" if profile else ""
        raise ValueError(
            f"--draft_ms: missing, must be the ms of an exact draft step on one device, since no trace was recorded in "
            f"mode exact on one device without overlap{tuned}"
        )
    token = token if token_ms is None else token_ms / 1000
    return Timing(RoundCosts(draft, verify, ()), draft_from, verify_from, token)


def _exact_steps(traces: Sequence[Trace]) -> tuple[float, float]:
    """Seconds of a step over one token, 0 where there is none, and what a second one adds: medians over the rounds
    that were drafted exactly by one device, while nothing else ran."""
    rounds: dict[int, list[tuple[int, float]]] = {1: [], 2: []}
    for trace in traces:
        if trace.rule.mode != "exact" or "," in str(trace.pair.get("draft_device", "")):
            continue
        for generation in trace.generations:
            if generation.overlap:
                continue
            tokens = first_tokens(generation.rounds, approximate=False)
            for each, read in zip(generation.rounds, tokens, strict=True):
                if each.steps and each.draft_seconds > 0 and read in rounds:
                    rounds[read].append((each.steps, each.draft_seconds))
    one, two = rounds[1], rounds[2]
    if len(one) < ENOUGH or len(two) < ENOUGH:
        every = [seconds / steps for steps, seconds in one + two]
        return (median(every) if every else 0.0), 0.0
    step = median(seconds / steps for steps, seconds in one)
    return step, max(0.0, median(seconds - steps * step for steps, seconds in two))


def _verify_seconds(traces: Sequence[Trace]) -> dict[int, float]:
    """Medians by tokens where there are enough of them; else one median of all."""
    widths: dict[int, list[float]] = {}
    for trace in traces:
        for each in trace.rounds:
            if each.verify_seconds > 0:
                widths.setdefault(each.drafted + 1, []).append(each.verify_seconds)
    if not widths:
        raise ValueError("--target_ms: missing, must be the ms of a target forward, since the traces have none above 0")
    medians = {width: median(seconds) for width, seconds in sorted(widths.items()) if len(seconds) >= ENOUGH}
    seconds = [each for group in widths.values() for each in group]
    return medians or {max(widths, key=lambda width: len(widths[width])): median(seconds)}
