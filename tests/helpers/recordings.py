"""Profiles, and tiny traces whose times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pdevis.config import DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.profile import Profile, encode_profile, this_machine
from pdevis.trace import ExactPass, Sizes, TraceWriter, band

LAYERS = 4
SIZES = Sizes(1, 2, 4)
PAIR = {
    "target": "big",
    "drafter": "small",
    "target_device": "cpu",
    "draft_device": "cpu",
    "mode": "exact",
    "check": "planned",
    "threshold": 0.9,
    "window": 2,
    "attention_window": 2,
    "mlp_window": 2,
    "keep_first": 2,
    "keep_last": 1,
    "calibrate": True,
}


def cosines(value: float) -> list[list[float]]:
    """Return a table in which every two hidden states are equally similar."""
    return [[1.0 if i == j else value for j in range(LAYERS + 1)] for i in range(LAYERS + 1)]


def exact_pass(step: int, tokens: int, value: float) -> ExactPass:
    return ExactPass(step, tokens, band(cosines(value)))


def a_round(drafted: int, accepted: int, passes: Iterable[ExactPass] = (), **changes: Any) -> dict[str, Any]:
    """Return arguments of `TraceWriter.round`: one step per token, 16 ms per step, 80 ms per verification."""
    return {
        "drafted": drafted,
        "accepted": accepted,
        "steps": drafted,
        "depth": 2 * LAYERS * drafted,
        "draft_seconds": 0.016 * drafted,
        "verify_seconds": 0.08,
        "passes": list(passes),
    } | changes


def write_trace(path: Path, *generations: list[dict[str, Any]], overlap: bool = False, **pair: Any) -> Path:
    """Write a trace of rounds by generation; `pair` changes the header."""
    writer = TraceWriter(path)
    writer.open(pair=PAIR | pair, layers=LAYERS, sizes=SIZES)
    for number, rounds in enumerate(generations):
        writer.generation(number=number, prompt_tokens=7, gamma=2, temperature=0.0, overlap=overlap)
        for arguments in rounds:
            writer.round(generation=number, **arguments)
    writer.close()
    return path


def exact_trace(folder: Path) -> Path:
    """Write two rounds of 2 draft steps of 16 ms and a verification of 80 ms, 2 + 1 tokens accepted: 5 in 224 ms."""
    rounds = [a_round(2, 2, [exact_pass(0, 1, 0.95)]), a_round(2, 1, [exact_pass(0, 2, 0.95)])]
    return write_trace(folder / "exact.jsonl", rounds)


def parallel_trace(folder: Path) -> Path:
    """Write the same rounds in mode parallel with 1 + 0 tokens accepted: 3 tokens."""
    rounds = [a_round(2, accepted, [exact_pass(0, 1, 0.95)], draft_seconds=9.0) for accepted in (1, 0)]
    return write_trace(folder / "parallel.jsonl", rounds, mode="parallel", keep_first=1)


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
