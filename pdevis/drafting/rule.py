"""The drafting rule of a pair: mode "auto" and static schedules resolved, modes refused that a drafter cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from pdevis.config import AUTO, SUBLAYER_MODES, DraftConfig
from pdevis.drafting.corrections import load_corrections


class Schedules(Protocol):
    """Source of static schedules for a drafter: `calibrate.schedule_source.ScheduleSource`."""

    def resolve(self, draft: DraftConfig) -> DraftConfig:
        """Return the settings with mode and schedules resolved."""
        ...


def check_mode(mode: str, has_sublayers: bool) -> None:
    """Raise ValueError if a drafting mode needs access to the drafter's sublayers and there is none."""
    if mode in SUBLAYER_MODES and not has_sublayers:
        raise ValueError(
            f"mode = {mode!r}: needs a drafter whose layers pdevis runs itself (docs/models.md lists the families); "
            "this drafter runs with mode = 'exact' only"
        )


def with_schedules(draft: DraftConfig, has_sublayers: bool, source: Callable[[], Schedules] | None) -> DraftConfig:
    """Return the settings with the static schedules that they ask for: given, of the corrections, or chosen.

    Args:
        source: returns what chooses; None: schedules must be given.

    Raises:
        ValueError: a schedule that the corrections are not for, or that is missing.
    """
    if not draft.asks_for_schedules or not has_sublayers:
        return draft
    if draft.corrections:
        schedule = load_corrections(draft.corrections).schedule
        if draft.schedule not in (None, AUTO, schedule):
            raise ValueError(f"schedule = {draft.schedule!r}: must be {schedule!r}, as in {draft.corrections}")
        draft = replace(draft, schedule=schedule)
    if source:
        return source().resolve(draft)
    if draft.schedule in (None, AUTO):
        raise ValueError("check = 'static': needs a schedule, or a pair made by load_pair, which chooses one")
    return draft if draft.mode != AUTO else replace(draft, mode="parallel")


def resolve_rule(
    config: DraftConfig,
    has_sublayers: bool,
    *,
    tuned: DraftConfig | None = None,
    devices: int = 1,
    splits_mlps: bool = False,
) -> DraftConfig:
    """Return the settings with mode "auto" replaced by the mode that this drafter is to run in.

    "auto" is parallel on several devices, with one MLP at a time if those are split between the devices: more gain
    nothing there and cost acceptance (docs/performance.md). On one device it is what a profile says, else "exact": the
    profile's mode, with its schedule if no other setting is given.

    Args:
        config: drafting settings.
        has_sublayers: the drafter's sublayers can be called one by one.
        tuned: drafting settings of a profile.
        devices: number of devices that the drafter runs on.
        splits_mlps: each MLP is split by rows between the devices.

    Raises:
        ValueError: for skip or parallel on a drafter without access to its sublayers; for a staggered static schedule
            on several devices.
    """
    check_mode(config.mode, has_sublayers)
    if devices > 1 and config.stagger and config.uses_prepared_schedules:
        raise ValueError("stagger = True: a static schedule on several devices must have stagger = False")
    if config.mode != "auto":
        return config
    if devices > 1:
        mlp_window = config.mlp_window or (1 if splits_mlps else None)
        return replace(config, mode="parallel", mlp_window=mlp_window)
    if tuned is None or not has_sublayers:
        return replace(config, mode="exact")
    if config == DraftConfig():
        return tuned
    return replace(config, mode="exact" if tuned.uses_prepared_schedules else tuned.mode)


def describe_rule(config: DraftConfig) -> dict[str, Any]:
    """Return the resolved drafting settings by their names, ready for JSON; those of static schedules if it has any."""
    names = ("mode", "check", "threshold", "window", "keep_first", "keep_last", "calibrate")
    if config.uses_prepared_schedules:
        names += ("schedule", "retention", "stagger", "corrections")
    lanes = {"attention_window": config.attention_lanes, "mlp_window": config.mlp_lanes}
    return {name: getattr(config, name) for name in names} | lanes
