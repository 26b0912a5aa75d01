"""A draft step of ours against the same drafter under transformers (float32 on CPU, its DynamicCache), step by step.

Both run the same tokens behind the same prompt, one step of ours, one of theirs, so that a drifting machine hurts both
alike. A step is one forward of one token and the argmax of its logits. Ours is the plain drafter (mode `exact`); what a
step costs inside the rounds of each mode stands in the rows of the comparison.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.bootstrap import interval, ratio
from pdevis.config import DecodeConfig

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

STEPS = 24  # timed on each prompt
UNTIMED = 4  # at the start of each
PROMPTS = 3


def measure_steps(pair: SpeculativePair, theirs: Any, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Seconds of each step, in turn.

    Args:
        pair: ours; its drafter is measured.
        theirs: the same drafter as a transformers model.
        prompts: ids; the first `PROMPTS` are used, as far as they leave room in the context.

    Returns:
        {"ours_seconds", "transformers_seconds": one number a step, "dtype", "precision"}.
    """
    seconds: dict[str, list[float]] = {"ours_seconds": [], "transformers_seconds": []}
    for ids in prompts[:PROMPTS]:
        for name, values in _measure_prompt(pair, theirs, ids).items():
            seconds[name] += values
    formats = {"dtype": str(theirs.dtype).removeprefix("torch."), "precision": pair.describe().get("draft_precision")}
    return seconds | formats


def _measure_prompt(pair: SpeculativePair, theirs: Any, ids: list[int]) -> dict[str, list[float]]:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=theirs.config)
    device = theirs.device

    @torch.inference_mode()
    def their_step(tokens: list[int]) -> float:
        begin = time.perf_counter()
        whole = torch.tensor([tokens], device=device)
        logits = theirs(whole, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits[0, -1].argmax().item()
        return time.perf_counter() - begin

    if len(ids) > 1:
        their_step(ids[:-1])
    token, before = ids[-1], 0.0
    found: dict[str, list[float]] = {"ours_seconds": [], "transformers_seconds": []}
    stream = pair.stream(ids, DecodeConfig(max_new_tokens=UNTIMED + STEPS, eos_ids=()), "drafter")
    for number, event in enumerate(stream):
        now = stream.stats.verify_seconds  # forward and argmax, every device synchronised
        theirs_now = their_step([token])
        if number >= UNTIMED:
            found["ours_seconds"].append(now - before)
            found["transformers_seconds"].append(theirs_now)
        token, before = event.id, now
    return found


def summarize_steps(entry: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Milliseconds per step, how many times faster ours is (ratio of sums over steps, median), and so in the rounds."""
    if entry is None:
        return None
    ours, theirs = entry["ours_seconds"], entry["transformers_seconds"]
    if not ours:
        return None
    speedup = interval([theirs, ours], ratio)
    mean = 1000 * sum(theirs) / len(theirs)
    in_rounds = {row["name"]: mean / row["draft_step_ms"] for row in rows if row.get("draft_step_ms")}
    return {
        "steps": len(ours),
        "precision": entry["precision"],
        "transformers_dtype": entry["dtype"],
        "ours_ms": {"mean": 1000 * sum(ours) / len(ours), "median": 1000 * median(ours)},
        "transformers_ms": {"mean": mean, "median": 1000 * median(theirs)},
        "speedup": speedup and speedup.as_dict(),
        "median_speedup": median(their / our for our, their in zip(ours, theirs, strict=True)),
        "speedup_in_rounds": in_rounds,
    }
