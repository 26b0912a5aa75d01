"""The check of greedy speculative output: equal answers, near-ties and true mismatches."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from pdevis.benchmarks.runs.lossless_check import (
    compare_turns,
    count_matches,
    first_difference,
    format_match_counts,
)
from pdevis.generation import DecodeStats, Generation


class Logits:
    """A target whose logits after any text are the same; remembers its input."""

    device = torch.device("cpu")

    def __init__(self, row: list[float]) -> None:
        self.row = torch.tensor(row)
        self.fed: list[int] = []

    def prefill(self, ids: torch.Tensor) -> None:
        self.fed += ids.tolist()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.fed += ids.tolist()
        return self.row.repeat(len(ids), 1)


@dataclass
class TargetOnly:
    target: Logits
    precision: str = "float32"
    resets: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        return {"target_precision": self.precision}

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize(
    ("precision", "gap", "near"),
    [
        ("float32", 1e-3, True),
        ("float32", 1e-2, False),
        ("packed", 1e-3, True),
        ("bfloat16", 0.5, True),
        ("bfloat16", 1.0, False),
        ("float64", 1e-3, False),
        ("unheard-of", 1e-2, False),
    ],
)
def test_near_ties_are_not_true_mismatches(precision: str, gap: float, near: bool) -> None:
    pair = TargetOnly(Logits([0.0, 20.0, 20.0 - gap, -5.0]), precision)
    difference = first_difference(pair, [7, 8], [3, 1, 0], [3, 2, 0, 0])
    assert difference is not None
    assert (difference["position"], difference["target_id"], difference["speculative_id"]) == (1, 1, 2)
    assert difference["logit_gap"] == pytest.approx(gap, rel=0.01)
    assert difference["near_tie"] is near
    assert pair.target.fed == [7, 8, 3]
    assert pair.resets == 2


def test_an_answer_that_ends_early_is_a_mismatch() -> None:
    difference = first_difference(None, [7], [3, 1], [3])
    assert difference == {"position": 1, "target_id": 1, "speculative_id": None, "logit_gap": None, "near_tie": False}
    assert first_difference(None, [7], [3, 1], [3, 1]) is None


def test_logits_that_are_not_numbers_are_not_a_tie() -> None:
    pair = TargetOnly(Logits([float("nan"), 1.0, 1.0]))
    difference = first_difference(pair, [7], [0], [1])
    assert difference is not None
    assert (difference["logit_gap"], difference["near_tie"]) == (None, False)


def test_turns_after_a_difference_are_not_compared() -> None:
    def answers(*ids: list[int]) -> list[Generation]:
        return [Generation(answer, "", DecodeStats()) for answer in ids]

    pair = TargetOnly(Logits([0.0, 1.0, 9.0]))
    blocks = [
        compare_turns(pair, [[7], [8]], answers([1], [1]), answers([1], [1])),
        compare_turns(pair, [[7], [8]], answers([1], [1]), answers([2], [2])),
    ]
    assert blocks[0] == {"same_as_target": True}
    assert blocks[1]["first_difference"]["turn"] == 0
    tie = {"same_as_target": False, "first_difference": {"near_tie": True}}
    counts = count_matches([*blocks, tie, {}])
    assert counts == {"equal": 1, "near_tie": 1, "different": 1}
    assert "1 of 3" in format_match_counts(counts)
    assert count_matches([{}]) is None
