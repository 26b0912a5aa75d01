"""Labels of models and drafting rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdevis.config import DraftConfig
from pdevis.util.labels import format_model, format_models, format_rule


def test_models_with_format_and_device() -> None:
    pair = {"target": "big", "target_precision": "int8", "target_device": "cpu", "drafter": "small"}
    assert format_models(pair) == ["target big (int8, cpu)", "drafter small"]
    assert format_models({}) == []
    assert format_model("big", None, "cuda:1") == "big (cuda:1)"


@pytest.mark.parametrize(
    ("rule", "short", "lanes", "full"),
    [
        (DraftConfig(mode="exact"), "exact", "exact", "exact"),
        (DraftConfig(mode="skip"), "skip τ=0.9", "skip τ=0.9", "skip planned τ=0.9 W=2"),
        (
            DraftConfig(mode="parallel", check="inline", window=4, mlp_window=1, keep_last=2, calibrate=False),
            "parallel τ=0.9 W=4",
            "parallel τ=0.9, 4 + 1 lanes",
            "parallel inline τ=0.9 W=4 (4 + 1) ends 2 + 2 uncalibrated",
        ),
    ],
)
def test_rules(rule: DraftConfig, short: str, lanes: str, full: str) -> None:
    assert [format_rule(rule, detail) for detail in ("short", "lanes", "full")] == [short, lanes, full]


def test_static_rules_are_named_by_what_is_known_of_their_schedule() -> None:
    chosen = DraftConfig("parallel", check="static")
    assert format_rule(chosen) == "parallel static retention 0.95"
    assert format_rule(chosen, "full", None, "24 → 14") == "parallel static 24 → 14 layers"
    given = DraftConfig(check="static", schedule="0,1+2", stagger=True, calibrate=False)
    assert format_rule(given, "full", "parallel") == "parallel static 0,1+2, staggered, uncalibrated"
    corrected = DraftConfig(check="static", corrections="c.safetensors")
    assert format_rule(corrected, "full", "skip", "24 → 20") == "skip static 24 → 20 layers, corrected"
    prepared = DraftConfig("parallel", threshold=0.7, schedule="auto")
    assert format_rule(prepared, "full", None, "24 → 14 or 18") == "parallel prepared τ=0.7 24 → 14 or 18 layers"
    assert format_rule(replace(chosen, mode="exact")) == "exact"


def test_mode_auto_is_named_by_what_it_stands_for() -> None:
    assert format_rule(DraftConfig(), "full", resolved_mode="skip") == "skip planned τ=0.9 W=2"
