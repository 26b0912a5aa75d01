"""The simulation as one JSON-ready object: a row for each number of devices and threshold, the limits, and what was
assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.simulate.costs import Machine, StepCosts
from pdevis.simulate.replay import Outcome, predict, run_rounds
from pdevis.simulate.trace_reader import Trace
from pdevis.simulate.trace_selection import Chosen, Timing, choose, rule_name


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    Args:
        draft: the rule; its threshold and windows are replaced row by row.
        thresholds: none for `exact`.
        window: None: as many as there are devices.
        machine: the drafter's; its devices are replaced row by row.
        repeated_share: of an MLP's time, as in `StepCosts.divide`.
        target_contention: as for `run_rounds`.
    """

    draft: DraftConfig
    thresholds: tuple[float, ...]
    devices: tuple[int, ...]
    window: int | None
    machine: Machine
    overlap: bool
    attention_share: float | None = None
    head_share: float | None = None
    repeated_share: float = 0.0
    target_contention: float = 1.0

    def at(self, threshold: float | None, devices: int) -> tuple[DraftConfig, Machine]:
        """The rule and the machine of one row."""
        draft = replace(self.draft, window=self.window or devices)
        draft = draft if threshold is None else replace(draft, threshold=threshold)
        return draft, replace(self.machine, devices=devices)


def simulate(traces: Sequence[Trace], timing: Timing, setup: Setup) -> dict[str, Any]:
    """All rows and limits. Raises ValueError like `predict`."""
    costs, first = timing.costs, traces[0]
    shares = setup.attention_share, setup.head_share, timing.token_seconds, setup.repeated_share
    step = StepCosts.divide(costs.draft_seconds, first.layers, first.sizes, *shares)
    exact = choose(traces, DraftConfig(mode="exact"))
    drafting = predict(exact.trace, DraftConfig(mode="exact"), step)
    base = run_rounds(exact.trace, drafting, costs.verify)
    if not base.drafted:
        raise ValueError(f"{exact.trace.name}: nothing was drafted in its {base.rounds} rounds")
    rows = [
        {"devices": devices, "threshold": threshold} | _row(traces, draft, machine, step, costs, base, setup)
        for devices in setup.devices
        for threshold in setup.thresholds or (None,)
        for draft, machine in [setup.at(threshold, devices)]
    ]
    return {
        "mode": setup.draft.mode,
        "overlap": setup.overlap,
        "traces": [_described(trace) for trace in traces],
        "costs": {
            "draft_ms": 1000 * costs.draft_seconds,
            "draft_from": timing.draft_from,
            "target_ms": {str(width): 1000 * seconds for width, seconds in sorted(costs.verify_seconds.items())},
            "target_from": timing.verify_from,
            "attention_ms": 1000 * step.attention,
            "mlp_ms": 1000 * step.mlp,
            "head_ms": 1000 * step.head,
            "token_ms": 1000 * step.token,
            "repeated_ms": 1000 * step.repeated,
            "link_us": 1e6 * setup.machine.link_seconds,
            "contention": setup.machine.contention,
            "target_contention": setup.target_contention,
        },
        "rows": rows,
        "limits": _limits(exact, base, costs),
        "assumptions": _assumptions(costs, setup),
    }


def _row(
    traces: Sequence[Trace],
    draft: DraftConfig,
    machine: Machine,
    step: StepCosts,
    costs: RoundCosts,
    base: Outcome,
    setup: Setup,
) -> dict[str, Any]:
    chosen = choose(traces, draft)
    drafting = predict(chosen.trace, draft, step, machine)
    guess = step.exact(machine) if setup.overlap else None
    ran = run_rounds(chosen.trace, drafting, costs.verify, guess, setup.target_contention)
    seconds = drafting.step_seconds
    return {
        "attention_window": draft.attention_lanes if draft.mode == "parallel" else None,
        "mlp_window": draft.mlp_lanes if draft.mode == "parallel" else None,
        "draft_step_ms": None if seconds is None else 1000 * seconds,
        "draft_speedup": costs.draft_seconds / seconds if seconds else None,
        "speedup_over_plain": ran.tokens_per_second * costs.verify(1),
        "speedup_over_exact": ran.tokens_per_second / base.tokens_per_second,
        "target_idle_ms": 1000 * ran.target_idle / ran.rounds,
        "drafter_idle_ms": 1000 * ran.drafter_idle / ran.rounds,
        "serial_depth": drafting.serial_depth,
        "tokens_per_round": ran.tokens / ran.rounds,
        "acceptance_rate": ran.accepted / ran.drafted if ran.drafted else None,
        "acceptance_measured": chosen.note is None,
        "note": chosen.note,
    }


def _limits(exact: Chosen, base: Outcome, costs: RoundCosts) -> dict[str, Any]:
    """What a faster drafter, and one that works beside the target, could bring over `exact` on one device."""
    return {
        "rounds": base.rounds,
        "draft_ms_per_round": 1000 * base.target_idle / base.rounds,
        "verify_ms_per_round": 1000 * base.verify_seconds / base.rounds,
        "draft_share": base.target_idle / base.seconds,
        "amdahl": base.seconds / base.verify_seconds,
        "perfect_overlap": base.seconds / max(base.target_idle, base.verify_seconds),
        "exact_over_plain": base.tokens_per_second * costs.verify(1),
        "note": exact.note,
    }


def _described(trace: Trace) -> dict[str, Any]:
    rounds = list(trace.rounds)
    return {
        "file": trace.name,
        "rule": rule_name(trace.rule),
        "layers": trace.layers,
        "sizes": asdict(trace.sizes),
        "generations": len(trace.generations),
        "rounds": len(rounds),
        "steps": sum(each.steps for each in rounds),
    }


def _assumptions(costs: RoundCosts, setup: Setup) -> list[str]:
    widths = sorted(costs.verify_seconds)
    plain = f"plain decoding takes {1000 * costs.verify(1):.2f} ms a token"
    if 1 not in widths:
        plain += f" (a forward over {widths[0]}: none over 1 was timed)"
    elif len(widths) == 1:
        plain += ", as long as a forward over several"
    link = f"an exchange {1e6 * setup.machine.link_seconds:g} µs" if setup.machine.link_seconds else "exchanges nothing"
    lines = [
        "times are in proportion to the weights read; "
        f"{link}; a contention of {setup.machine.contention:g}; "
        f"{'each MLP cut by rows' if setup.machine.cut else 'whole MLPs'} on several devices",
        f"{plain}; a rule that drafts differently is accepted as recorded",
    ]
    if setup.overlap:
        lines.append(
            "overlap: a draft made ahead counts where all was accepted and the guess was right, as recorded, else at "
            f"β; while target and drafter both work, each takes {setup.target_contention:g} times as long"
        )
    return lines
