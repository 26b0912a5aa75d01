"""The drafting rule of a pair: mode "auto" resolved, and modes refused that a drafter cannot run."""

from __future__ import annotations

from dataclasses import replace

from pdevis.config import SUBLAYER_MODES, DraftConfig


def check_mode(mode: str, has_sublayers: bool) -> None:
    """Raise ValueError if a drafting mode needs access to the drafter's sublayers and there is none."""
    if mode in SUBLAYER_MODES and not has_sublayers:
        raise ValueError(
            f"mode = {mode!r}: needs a drafter whose layers pdevis runs itself (docs/models.md lists the families); "
            "this drafter runs with mode = 'exact' only"
        )


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
