"""Names of models and drafting rules as tables, plots and the chat show them.

format_models(pair.describe())         # ["target qwen-8b (bfloat16, cuda:1)", "drafter qwen-0.6b (int8, cuda:0)"]
format_rule(DraftConfig(mode="skip"))  # "skip τ=0.9"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pdevis.config import AUTO, DraftConfig

MODELS = (("target", "target"), ("drafter", "draft"))  # role in `pair.describe()`, prefix of its format and device


def format_model(name: str, precision: str | None = None, device: str | None = None) -> str:
    """Return a model's name with its weight format and device, as in "qwen-8b (bfloat16, cuda:1)"."""
    details = ", ".join(filter(None, (precision, device)))
    return f"{name} ({details})" if details else name


def format_models(pair: Mapping[str, Any]) -> list[str]:
    """Return one label per model of a pair, as in "target qwen-8b (bfloat16, cuda:1)".

    Args:
        pair: what `SpeculativePair.describe` returns, or its `labels`. A model that it does not name has no label.
    """
    return [
        f"{role} " + format_model(pair[role], pair.get(f"{prefix}_precision"), pair.get(f"{prefix}_device"))
        for role, prefix in MODELS
        if role in pair
    ]


def format_rule(
    rule: DraftConfig,
    detail: Literal["short", "lanes", "full"] = "short",
    resolved_mode: str | None = None,
    serial_layers: str | None = None,
) -> str:
    """Return the name of a drafting rule. Result files hold these names, so their spelling is part of the format.

    Args:
        rule: the drafting settings.
        detail: "short" gives mode and threshold, and the window of `parallel`, as in "parallel τ=0.9 W=2"; "lanes"
            its lanes instead, as in "parallel τ=0.9, 2 + 2 lanes"; "full" every setting that has an influence, as in
            "skip planned τ=0.9 W=2 ends 2 + 2 uncalibrated".
        resolved_mode: what mode "auto" stands for; None: `rule.mode` as given.
        serial_layers: of the static schedules, as in "24 → 14"; None: not known.
    """
    mode = resolved_mode or rule.mode
    if mode == "exact":
        return mode
    if rule.asks_for_schedules:
        return _format_static_rule(rule, mode, serial_layers)
    threshold = f"τ={rule.threshold:g}"
    if detail == "short":
        return f"{mode} {threshold}" + (f" W={rule.window}" if mode == "parallel" else "")
    if detail == "lanes":
        lanes = f", {rule.attention_lanes} + {rule.mlp_lanes} lanes" if mode == "parallel" else ""
        return f"{mode} {threshold}{lanes}"
    default = DraftConfig()
    name = f"{mode} {rule.check} {threshold} W={rule.window}"
    if mode == "parallel" and (rule.attention_lanes, rule.mlp_lanes) != (rule.window, min(rule.window, 2)):
        name += f" ({rule.attention_lanes} + {rule.mlp_lanes})"
    if (rule.keep_first, rule.keep_last) != (default.keep_first, default.keep_last):
        name += f" ends {rule.keep_first} + {rule.keep_last}"
    return name if rule.calibrate else f"{name} uncalibrated"


def _format_static_rule(rule: DraftConfig, mode: str, serial_layers: str | None) -> str:
    """Return the name of a rule with static schedules, as in "parallel static 24 → 14 layers, corrected"."""
    check = "static" if rule.check == "static" else f"prepared τ={rule.threshold:g}"
    if serial_layers:
        layers = f" {serial_layers} layers"
    elif rule.schedule in (None, AUTO) and not rule.corrections:
        layers = f" retention {rule.retention:g}"
    else:
        layers = f" {rule.schedule}" if rule.schedule else ""
    notes = (
        ["corrected"] * bool(rule.corrections) + ["staggered"] * rule.stagger + ["uncalibrated"] * (not rule.calibrate)
    )
    return ", ".join([f"{mode} {check}{layers}", *notes])
