"""Profiles for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.profile import Profile, encode_profile, this_machine

COSTS = RoundCosts(0.01, {1: 1.0, 5: 1.1}, [0.9, 0.8])
SKIP = DraftConfig(mode="skip", threshold=0.95, keep_first=1)


def make_profile(target: str = "big", drafter: str = "small", **changes: Any) -> Profile:
    models = {
        "target_model": target,
        "drafter_model": drafter,
        "device": "cpu",
        "target_device": None,
        "draft_device": None,
        "target_precision": "auto",
        "draft_precision": "float64",
    }
    pair = {
        "target": target,
        "drafter": drafter,
        "target_device": "cpu",
        "draft_device": "cpu",
        "target_precision": "float64",
        "draft_precision": "float64",
    }
    profile = Profile("tuned.json", models, SKIP, 7, 1, COSTS, pair, this_machine())
    return replace(profile, **changes)


def save(profile: Profile, path: Path) -> Path:
    path.write_bytes(encode_profile(profile, "2030-01-31T12:00:00+00:00", {"candidates": []}))
    return path
