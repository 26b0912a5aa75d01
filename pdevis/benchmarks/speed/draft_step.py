"""Time draft steps of pdevis and of the same drafter under transformers (float32 on CPU, its DynamicCache).

Both run the same tokens after the same prompt, and their steps are interleaved, so that a machine whose speed drifts
affects both alike. A step is one forward of one token and the argmax of its logits. pdevis runs the plain drafter
(mode `exact`); the cost of a step inside the rounds of each mode is in the rows of the comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.bootstrap import as_json, interval, ratio
from pdevis.config import DecodeConfig

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

TIMED_STEPS = 24  # on each prompt
UNTIMED_STEPS = 4  # before them
MAX_PROMPTS = 3


def measure_steps(pair: SpeculativePair, transformers_drafter: Any, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Time every step, interleaved.

    Args:
        pair: its drafter is measured.
        transformers_drafter: the same drafter as a transformers model.
        prompts: ids; the first `MAX_PROMPTS` are used.

    Returns:
        {"ours_seconds", "transformers_seconds": one number per step, "dtype", "precision"}.
    """
    seconds: dict[str, list[float]] = {"ours_seconds": [], "transformers_seconds": []}
    for ids in prompts[:MAX_PROMPTS]:
        _measure_prompt(pair, transformers_drafter, ids, seconds)
    dtype = str(transformers_drafter.dtype).removeprefix("torch.")
    return seconds | {"dtype": dtype, "precision": pair.describe().get("draft_precision")}


def _measure_prompt(
    pair: SpeculativePair, transformers_drafter: Any, ids: list[int], seconds: dict[str, list[float]]
) -> None:
    """Add the seconds of the timed steps after one prompt to both lists."""
    transformers_step = _make_step(transformers_drafter)
    if len(ids) > 1:
        transformers_step(ids[:-1])
    token, seconds_before = ids[-1], 0.0
    config = DecodeConfig(max_new_tokens=UNTIMED_STEPS + TIMED_STEPS, eos_ids=())
    stream = pair.stream(ids, config, "drafter")
    for number, event in enumerate(stream):
        seconds_now = stream.stats.verify_seconds  # forward and argmax, every device synchronised
        transformers_seconds = transformers_step([token])
        if number >= UNTIMED_STEPS:
            seconds["ours_seconds"].append(seconds_now - seconds_before)
            seconds["transformers_seconds"].append(transformers_seconds)
        token, seconds_before = event.id, seconds_now


def _make_step(model: Any) -> Callable[[list[int]], float]:
    """Return a function that runs a transformers model on further tokens and returns the seconds that this took."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    device = model.device

    @torch.inference_mode()
    def step(tokens: list[int]) -> float:
        begin = time.perf_counter()
        ids = torch.tensor([tokens], device=device)
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits[0, -1].argmax().item()  # waits for the device
        return time.perf_counter() - begin

    return step


def summarize_steps(entry: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return milliseconds per step and the speedup over transformers, for single steps and inside rounds.

    Args:
        entry: what `measure_steps` returns; None: not measured.
        rows: rows of the speed comparison.
    """
    if entry is None or not entry["ours_seconds"]:
        return None
    ours, theirs = entry["ours_seconds"], entry["transformers_seconds"]
    mean_ms = 1000 * sum(theirs) / len(theirs)
    return {
        "steps": len(ours),
        "precision": entry["precision"],
        "transformers_dtype": entry["dtype"],
        "ours_ms": {"mean": 1000 * sum(ours) / len(ours), "median": 1000 * median(ours)},
        "transformers_ms": {"mean": mean_ms, "median": 1000 * median(theirs)},
        "speedup": as_json(interval([theirs, ours], ratio)),
        "median_speedup": median(their / our for our, their in zip(ours, theirs, strict=True)),
        "speedup_in_rounds": {row["name"]: mean_ms / row["draft_step_ms"] for row in rows if row.get("draft_step_ms")},
    }
