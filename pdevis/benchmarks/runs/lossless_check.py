"""Check of greedy speculative output against the target's own, token by token.

A forward of k tokens and k forwards of one token may round differently. If the two best logits are closer than that
rounding, either token is a correct choice of the target: a near-tie. Anything else is a true mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pdevis.generation import Generation

if TYPE_CHECKING:
    import torch

# Largest difference of two logits that counts as rounding, relative to the largest |logit| of their position:
# a few hundred times the unit roundoff for wide formats, since errors grow along layers and long sums; a few times for
# narrow ones, whose sums are kept in float32. int8: an activation may round to the adjacent quantization level.
NEAR_TIE = {
    "float64": 1e-11,
    "float32": 1e-4,
    "packed": 1e-4,
    "float16": 4e-3,
    "bfloat16": 3e-2,
    "nf4": 3e-2,
    "int8": 1e-2,
}
KINDS = ("equal", "near_tie", "different")


def first_difference(
    pair: Any, prompt_ids: list[int], target_ids: Sequence[int], speculative_ids: Sequence[int]
) -> dict[str, Any] | None:
    """First difference of two greedy continuations of one prompt; None if they are the same.

    Returns:
        {"position" (in the continuation), "target_id", "speculative_id" (None after its end), "logit_gap" (difference
        of the target's logits of the two; None if one continuation has ended), "near_tie"}.
    """
    if list(target_ids) == list(speculative_ids):
        return None
    shorter = min(len(target_ids), len(speculative_ids))
    position = next((i for i in range(shorter) if target_ids[i] != speculative_ids[i]), shorter)
    difference: dict[str, Any] = {"position": position, "target_id": None, "speculative_id": None}
    difference |= {"logit_gap": None, "near_tie": False}
    for name, ids in (("target_id", target_ids), ("speculative_id", speculative_ids)):
        if position < len(ids):
            difference[name] = ids[position]
    if position == shorter:
        return difference
    logits = _logits(pair, [*prompt_ids, *target_ids[:position]])
    gap = abs(float(logits[difference["target_id"]] - logits[difference["speculative_id"]]))
    if math.isfinite(gap):
        tolerance = NEAR_TIE.get(pair.describe().get("target_precision"), NEAR_TIE["float32"])
        difference["logit_gap"] = gap
        difference["near_tie"] = gap <= tolerance * float(logits.abs().max())
    return difference


def _logits(pair: Any, ids: list[int]) -> torch.Tensor:
    """The target's next-token logits [V] after `ids`, as plain decoding computes them."""
    import torch  # not at the top: --help of a script does not need it

    pair.reset()
    model = pair.target
    tokens = torch.tensor(ids, device=model.device)
    try:
        with torch.inference_mode():
            if len(ids) > 1:
                model.prefill(tokens[:-1])
            return model.forward(tokens[-1:])[-1].double()
    finally:
        pair.reset()


def compare_turns(
    pair: Any, prompts: list[list[int]], target: list[Generation], speculative: list[Generation]
) -> dict[str, Any]:
    """Compare the turns of a conversation: {"same_as_target"}, and "first_difference" with its "turn" if it is False.

    Turns after the first difference have different contexts, and are not compared.
    """
    for turn, (prompt_ids, expected, answer) in enumerate(zip(prompts, target, speculative)):
        difference = first_difference(pair, prompt_ids, expected.ids, answer.ids)
        if difference is not None:
            return {"same_as_target": False, "first_difference": difference | {"turn": turn}}
    return {"same_as_target": True}


def count_matches(blocks: Iterable[Mapping[str, Any]]) -> dict[str, int] | None:
    """Number of speculative blocks that equal the target's, are near-ties, or differ; None if none was compared."""
    counts = dict.fromkeys(KINDS, 0)
    for block in blocks:
        if "same_as_target" in block:
            near_tie = not block["same_as_target"] and block["first_difference"]["near_tie"]
            counts["equal" if block["same_as_target"] else "near_tie" if near_tie else "different"] += 1
    return counts if any(counts.values()) else None


def format_match_counts(counts: dict[str, int]) -> str:
    """The result of `count_matches` in one line."""
    total = sum(counts.values())
    text = f"greedy check: {counts['equal']} of {total} speculative answers equal the target's token for token"
    return text + f", {counts['near_tie']} differ first at a near-tie, {counts['different']} true mismatches"
