"""Is greedy speculative output the target's own? Token by token, with near-ties told apart from real differences.

Checking k tokens in one forward and checking them one by one may round differently, and where the two best logits lie
within that rounding, either token is the target's choice: a near-tie. Anything else is a real difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pdevis.generation import Generation

if TYPE_CHECKING:
    import torch

# How far apart two logits may lie, relative to the largest |logit| of their position, and still count as one rounding:
# a few hundred times the unit roundoff for wide formats, since errors grow along layers and long sums; a few times for
# narrow ones, whose sums are kept in float32. int8: an activation may round to its neighbouring step.
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
    """Where two greedy continuations of one prompt part; None where they are the same.

    Returns:
        {"position" (in the continuation), "target_id", "speculative_id" (None behind its end), "logit_gap" (between the
        two, of the target; None where one has ended), "near_tie"}.
    """
    if list(target_ids) == list(speculative_ids):
        return None
    shorter = min(len(target_ids), len(speculative_ids))
    position = next((i for i in range(shorter) if target_ids[i] != speculative_ids[i]), shorter)
    found: dict[str, Any] = {"position": position, "target_id": None, "speculative_id": None}
    found |= {"logit_gap": None, "near_tie": False}
    for name, ids in (("target_id", target_ids), ("speculative_id", speculative_ids)):
        if position < len(ids):
            found[name] = ids[position]
    if position == shorter:
        return found
    logits = _logits(pair, [*prompt_ids, *target_ids[:position]])
    gap = abs(float(logits[found["target_id"]] - logits[found["speculative_id"]]))
    if math.isfinite(gap):
        tolerance = NEAR_TIE.get(pair.describe().get("target_precision"), NEAR_TIE["float32"])
        found["logit_gap"] = gap
        found["near_tie"] = gap <= tolerance * float(logits.abs().max())
    return found


def _logits(pair: Any, ids: list[int]) -> torch.Tensor:
    """The target's logits [V] behind ids, as plain decoding would compute them."""
    import torch  # here, so that a script's --help does without

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


def compare_turns(pair: Any, prompts: list[list[int]], target: list[Generation], other: list[Generation]) -> dict:
    """{"same_as_target", and where it is False "first_difference" with its "turn"} of a conversation.

    Turns behind the first difference have different contexts, and are not compared.
    """
    for turn, (prompt_ids, ours, theirs) in enumerate(zip(prompts, target, other)):
        found = first_difference(pair, prompt_ids, ours.ids, theirs.ids)
        if found is not None:
            return {"same_as_target": False, "first_difference": found | {"turn": turn}}
    return {"same_as_target": True}


def tally(blocks: Iterable[dict[str, Any]]) -> dict[str, int] | None:
    """How many speculative blocks are equal to the target's, near-ties, and different; None: none was compared."""
    counts = dict.fromkeys(KINDS, 0)
    for block in blocks:
        if "same_as_target" in block:
            near = not block["same_as_target"] and block["first_difference"]["near_tie"]
            counts["equal" if block["same_as_target"] else "near_tie" if near else "different"] += 1
    return counts if any(counts.values()) else None


def verdict(counts: dict[str, int]) -> str:
    """The tally in one line."""
    total = sum(counts.values())
    text = f"greedy check: {counts['equal']} of {total} speculative answers equal the target's token for token"
    return text + f", {counts['near_tie']} part at a near-tie, {counts['different']} really differ"
