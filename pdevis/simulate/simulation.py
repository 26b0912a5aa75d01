"""The simulation: one row per number of devices and threshold, the limits of any drafter, and the assumptions.

`Simulation.as_dict` is the JSON object that `python -m pdevis.simulate --json` prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.simulate.costs import DeviceSet, StepCosts
from pdevis.simulate.replay import RunTotals, simulate_drafts, simulate_rounds
from pdevis.simulate.trace_reader import Trace
from pdevis.simulate.trace_selection import SelectedTrace, Timing, select_trace
from pdevis.trace import Sizes
from pdevis.util.labels import format_rule

EXACT = DraftConfig(mode="exact")


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulation.

    Args:
        rule: the drafting rule; its threshold and windows are replaced row by row.
        thresholds: empty for `exact` and for a static schedule.
        device_counts: numbers of devices.
        window: None: as many as there are devices.
        devices: the drafter's devices; their number is replaced row by row.
        overlap: draft during verification.
        attention_share, head_share, repeated_share, kernel_share: as for `StepCosts.divide`.
        target_contention: slowdown of target and drafter while both work.
    """

    rule: DraftConfig
    thresholds: tuple[float, ...]
    device_counts: tuple[int, ...]
    window: int | None
    devices: DeviceSet
    overlap: bool
    attention_share: float | None = None
    head_share: float | None = None
    repeated_share: float = 0.0
    kernel_share: float = 0.0
    target_contention: float = 1.0

    def __post_init__(self) -> None:
        has_threshold = self.rule.mode != "exact" and self.rule.check != "static"
        assert bool(self.thresholds) == has_threshold, "exact and static schedules have no threshold, the others have"

    def row_rule(self, threshold: float | None, device_count: int) -> DraftConfig:
        """Return the rule of one row."""
        rule = replace(self.rule, window=self.window or device_count)
        return rule if threshold is None else replace(rule, threshold=threshold)


@dataclass(frozen=True)
class TraceSummary:
    """The contents of one trace, in numbers."""

    file: str
    rule: str
    layers: int
    sizes: Sizes
    generations: int
    rounds: int
    steps: int


@dataclass(frozen=True)
class CostSummary:
    """The costs used. `target_ms`: by tokens of a forward; the parts of a step are on one device."""

    draft_ms: float
    draft_from: str
    target_ms: dict[str, float]
    target_from: str
    attention_ms: float
    mlp_ms: float
    head_ms: float
    token_ms: float
    repeated_ms: float
    link_us: float
    contention: float
    target_contention: float


@dataclass(frozen=True)
class SimulationRow:
    """The result for one number of devices and one threshold; idle times are per round.

    `threshold`, `attention_window` and `mlp_window` are None if the mode has none; `note` as in `SelectedTrace`.
    """

    devices: int
    threshold: float | None
    attention_window: int | None
    mlp_window: int | None
    draft_step_ms: float | None
    draft_speedup: float | None
    speedup_over_plain: float
    speedup_over_exact: float
    target_idle_ms: float
    drafter_idle_ms: float
    serial_depth: float | None
    tokens_per_round: float
    acceptance_rate: float | None
    acceptance_measured: bool
    note: str | None


@dataclass(frozen=True)
class Limits:
    """The most that a faster drafter, and one that drafts during verification, gain over `exact` on one device."""

    rounds: int
    draft_ms_per_round: float
    verify_ms_per_round: float
    draft_share: float
    amdahl: float
    perfect_overlap: float
    exact_over_plain: float
    note: str | None


@dataclass(frozen=True)
class Simulation:
    """The result of a simulation."""

    mode: str
    overlap: bool
    traces: list[TraceSummary]
    costs: CostSummary
    rows: list[SimulationRow]
    limits: Limits
    assumptions: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        return asdict(self)


def simulate(traces: Sequence[Trace], timing: Timing, settings: SimulationSettings) -> Simulation:
    """Simulate all rows and limits. Raises ValueError as `simulate_drafts`, and if nothing was drafted."""
    costs = timing.costs
    step = StepCosts.divide(
        costs.draft_seconds,
        traces[0].layers,
        traces[0].sizes,
        attention_share=settings.attention_share,
        head_share=settings.head_share,
        token_seconds=timing.token_seconds,
        repeated_share=settings.repeated_share,
        kernel_share=settings.kernel_share,
    )
    exact = select_trace(traces, EXACT)
    baseline = simulate_rounds(exact.trace, simulate_drafts(exact.trace, EXACT, step), costs.verify)
    if not baseline.drafted:
        raise ValueError(f"{exact.trace.name}: nothing was drafted in its {baseline.rounds} rounds")
    return Simulation(
        mode=settings.rule.mode,
        overlap=settings.overlap,
        traces=[_summarize_trace(trace) for trace in traces],
        costs=_summarize_costs(timing, step, settings),
        rows=[
            _simulate_row(traces, threshold, device_count, costs=costs, step=step, baseline=baseline, settings=settings)
            for device_count in settings.device_counts
            for threshold in settings.thresholds or (None,)
        ],
        limits=_limits(exact, baseline, costs),
        assumptions=_assumptions(costs, settings),
    )


def _simulate_row(
    traces: Sequence[Trace],
    threshold: float | None,
    device_count: int,
    *,
    costs: RoundCosts,
    step: StepCosts,
    baseline: RunTotals,
    settings: SimulationSettings,
) -> SimulationRow:
    rule, devices = settings.row_rule(threshold, device_count), replace(settings.devices, count=device_count)
    selected = select_trace(traces, rule)
    drafts = simulate_drafts(selected.trace, rule, step, devices)
    totals = simulate_rounds(
        selected.trace,
        drafts,
        costs.verify,
        guess_seconds=step.exact_seconds(devices) if settings.overlap else None,
        contention=settings.target_contention,
    )
    step_seconds = drafts.step_seconds
    return SimulationRow(
        devices=device_count,
        threshold=threshold,
        attention_window=rule.attention_lanes if rule.mode == "parallel" and rule.check != "static" else None,
        mlp_window=rule.mlp_lanes if rule.mode == "parallel" and rule.check != "static" else None,
        draft_step_ms=None if step_seconds is None else 1000 * step_seconds,
        draft_speedup=costs.draft_seconds / step_seconds if step_seconds else None,
        speedup_over_plain=totals.tokens_per_second * costs.verify(1),
        speedup_over_exact=totals.tokens_per_second / baseline.tokens_per_second,
        target_idle_ms=1000 * totals.target_idle_seconds / totals.rounds,
        drafter_idle_ms=1000 * totals.drafter_idle_seconds / totals.rounds,
        serial_depth=drafts.serial_depth,
        tokens_per_round=totals.tokens / totals.rounds,
        acceptance_rate=totals.accepted / totals.drafted if totals.drafted else None,
        acceptance_measured=selected.note is None,
        note=selected.note,
    )


def _limits(exact: SelectedTrace, baseline: RunTotals, costs: RoundCosts) -> Limits:
    draft_seconds = baseline.target_idle_seconds
    return Limits(
        rounds=baseline.rounds,
        draft_ms_per_round=1000 * draft_seconds / baseline.rounds,
        verify_ms_per_round=1000 * baseline.verify_seconds / baseline.rounds,
        draft_share=draft_seconds / baseline.seconds,
        amdahl=baseline.seconds / baseline.verify_seconds,
        perfect_overlap=baseline.seconds / max(draft_seconds, baseline.verify_seconds),
        exact_over_plain=baseline.tokens_per_second * costs.verify(1),
        note=exact.note,
    )


def _summarize_trace(trace: Trace) -> TraceSummary:
    rounds = list(trace.rounds)
    return TraceSummary(
        file=trace.name,
        rule=format_rule(trace.rule, "lanes"),
        layers=trace.layers,
        sizes=trace.sizes,
        generations=len(trace.generations),
        rounds=len(rounds),
        steps=sum(traced.steps for traced in rounds),
    )


def _summarize_costs(timing: Timing, step: StepCosts, settings: SimulationSettings) -> CostSummary:
    verify_seconds = sorted(timing.costs.verify_seconds.items())
    return CostSummary(
        draft_ms=1000 * timing.costs.draft_seconds,
        draft_from=timing.draft_from,
        target_ms={str(width): 1000 * seconds for width, seconds in verify_seconds},
        target_from=timing.verify_from,
        attention_ms=1000 * step.attention_seconds,
        mlp_ms=1000 * step.mlp_seconds,
        head_ms=1000 * step.head_seconds,
        token_ms=1000 * step.token_seconds,
        repeated_ms=1000 * step.repeated_seconds,
        link_us=1e6 * settings.devices.link_seconds,
        contention=settings.devices.contention,
        target_contention=settings.target_contention,
    )


def _assumptions(costs: RoundCosts, settings: SimulationSettings) -> list[str]:
    widths = sorted(costs.verify_seconds)
    plain = f"plain decoding takes {1000 * costs.verify(1):.2f} ms a token"
    if 1 not in widths:
        plain += f" (a forward over {widths[0]}: none over 1 was timed)"
    elif len(widths) == 1:
        plain += ", as long as a forward over several"
    devices = settings.devices
    exchange = f"an exchange takes {1e6 * devices.link_seconds:g} µs" if devices.link_seconds else "exchanges are free"
    lines = [
        f"times are in proportion to the weights read; {exchange}; contention is {devices.contention:g}; on several "
        f"devices {'each MLP is split by rows' if devices.split_mlps else 'each MLP runs on one'}",
        f"{plain}; acceptance is as recorded, also for a rule that drafts differently",
    ]
    if settings.rule.check == "static":
        lines.append(
            f"static schedule {settings.rule.schedule}: {settings.kernel_share:g} of a sublayer's time does not depend "
            "on its weights, and a wide layer spends it once"
        )
    if settings.overlap:
        lines.append(
            "overlap: a draft made during verification is used if all was accepted and the guessed bonus token was "
            "right, as recorded, else with probability β; while target and drafter both work, each takes "
            f"{settings.target_contention:g} times as long"
        )
    return lines
