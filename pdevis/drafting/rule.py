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
    tuned_mode: str | None = None,
    devices: int = 1,
    splits_mlps: bool = False,
) -> DraftConfig:
    """Return the settings with mode "auto" replaced by the mode that this drafter is to run in.

    "auto" is parallel on several devices, with one MLP at a time if those are split between the devices: more gain
    nothing there and cost acceptance (docs/performance.md). On one device it is the mode of a profile, else "exact".

    Args:
        config: drafting settings.
        has_sublayers: the drafter's sublayers can be called one by one.
        tuned_mode: mode of a profile.
        devices: number of devices that the drafter runs on.
        splits_mlps: each MLP is split by rows between the devices.

    Raises:
        ValueError: for skip or parallel on a drafter without access to its sublayers.
    """
    check_mode(config.mode, has_sublayers)
    if config.mode != "auto":
        return config
    if devices > 1:
        mlp_window = config.mlp_window or (1 if splits_mlps else None)
        return replace(config, mode="parallel", mlp_window=mlp_window)
    return replace(config, mode=tuned_mode if tuned_mode and has_sublayers else "exact")
