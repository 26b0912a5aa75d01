"""Tiny traces whose times can be computed by hand.

The drafter has 4 layers with weights 1 (attention) and 2 (MLP) each, and a head of 4: an exact step of 16 ms is an
attention of 1 ms, an MLP of 2 ms, and a head of 4 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
