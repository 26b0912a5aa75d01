"""Whole pairs: end-to-end speed at synthetic acceptance, exactness over many prompts, real weights and the CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch

from pdevis.benchmarks.gpu.model_costs import pairs_schedule, prompt_ids
from pdevis.benchmarks.runs.lossless_check import compare_turns, count_matches
from pdevis.benchmarks.synthetic import drawn_acceptance
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.loading.catalog import EMBEDDED
from pdevis.pair import SpeculativePair, load_pair
from pdevis.util.prompts import PROMPTS

STATIC_DEPTH = 1.7


def pair_speeds(
    target: str,
    drafter: str,
    device: torch.device,
    *,
    acceptances: tuple[float, ...],
    gammas: tuple[int, ...],
    length: int,
    draft_device: str | None = None,
) -> dict[str, Any]:
    """Time speculative over plain decoding at drawn acceptance: exact and static drafts, every γ, interleaved.

    Args:
        target, drafter: keys of the catalog, whose weights are random.
        device: of both, unless `draft_device` names others for the drafter.
        acceptances: probabilities that a draft token is accepted.
        gammas: draft lengths.
        length: new tokens of each decoding.
        draft_device: as for `load_pair`.

    Returns:
        {"notes", "plain_tokens_per_second", "rows": [{"mode", "acceptance", "gamma", "over_plain"}], "memory_bytes"}.
    """
    notes: list[str] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pair = load_pair(
        f"random:{target}",
        f"random:{drafter}",
        device=str(device),
        draft_device=draft_device,
        draft=DraftConfig("exact"),
        on_progress=lambda line: notes.append(line) if line.startswith("note: ") else None,
    )
    try:
        return {"notes": notes, **_pair_rows(pair, device, acceptances, gammas, length)}
    finally:
        pair.close()


def _pair_rows(
    pair: SpeculativePair,
    device: torch.device,
    acceptances: tuple[float, ...],
    gammas: tuple[int, ...],
    length: int,
) -> dict[str, Any]:
    layers = pair.workers.load_spec.config.num_hidden_layers if pair.workers else len(pair.drafter.layers)
    schedule = pairs_schedule(layers, STATIC_DEPTH)
    rules = {"exact": DraftConfig("exact"), "static": DraftConfig("parallel", check="static", schedule=schedule)}
    ids = prompt_ids(pair.target)

    def decode(method: str, gamma: int = gammas[0]) -> Any:
        return pair.generate(ids, DecodeConfig(max_new_tokens=length, gamma=gamma, eos_ids=()), method)

    decode("target")
    rows, plain = [], []
    for mode, rule in rules.items():
        pair.configure(rule)
        decode("speculative", max(gammas))  # captures what is missing
        for acceptance, gamma in product(acceptances, gammas):
            plain.append(decode("target").stats.tokens_per_second)
            with drawn_acceptance(pair, acceptance):
                speed = decode("speculative", gamma).stats.tokens_per_second
            row = {"mode": mode, "acceptance": acceptance, "gamma": gamma, "over_plain": speed / plain[-1]}
            rows.append(row)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"plain_tokens_per_second": sorted(plain)[len(plain) // 2], "rows": rows, "memory_bytes": memory}


def exactness(key: str, device: torch.device, *, prompts: int, length: int) -> dict[str, Any]:
    """Compare speculative with plain decoding over many prompts of random ids; the drafter has the target's weights.

    Returns:
        {"prompts", "equal", "near_ties", "real_differences", "acceptance_rate"}.
    """
    pair = load_pair(f"random:{key}", device=str(device), draft=DraftConfig("exact"))
    config = DecodeConfig(max_new_tokens=length, eos_ids=())
    blocks, speculative = [], []
    for number in range(prompts):
        ids = prompt_ids(pair.target, 16 + number, seed=number)
        plain, written = (pair.generate(ids, config, method) for method in ("target", "speculative"))
        blocks.append(compare_turns(pair, [ids], [plain], [written]))
        speculative.append(written.stats)
    pair.close()
    counts = count_matches(blocks)
    return {
        "prompts": prompts,
        "equal": counts["equal"],
        "near_ties": counts["near_tie"],
        "real_differences": counts["different"],
        "acceptance_rate": DecodeStats.sum(speculative).acceptance_rate,
    }


def embedded_on_both(device: torch.device, *, prompts: int, length: int) -> dict[str, Any]:
    """Compare the embedded model's greedy text on a device, in float32, with the CPU's, and time it.

    Drafting ahead is timed here since it needs real weights: a drafter with random ones is never sure enough.

    Returns:
        {"prompts", "same_tokens" (mean length of the common beginning), "length", "plain_tokens_per_second",
        "speculative_over_plain", "ahead_over_speculative" (drafter in a process of its own on the same device)}.
    """
    config = DecodeConfig(max_new_tokens=length, eos_ids=())
    formats = {"target_precision": "float32", "draft_precision": "float32"}
    texts: dict[str, list[list[int]]] = {}
    for where in ("cpu", str(device)):
        pair = load_pair(EMBEDDED, device=where, **formats)
        encoded = [pair.encode(text) for text in PROMPTS[:prompts]]
        texts[where] = [pair.generate(ids, config, "target").ids for ids in encoded]
        if where == "cpu" and device.type != "cpu":
            pair.close()
    plain, speculative = (_speed(pair, encoded, config, method) for method in ("target", "speculative"))
    pair.close()
    pair = load_pair(EMBEDDED, device=str(device), overlap=True, **formats)
    alone, ahead = (_speed(pair, encoded, replace(config, overlap=overlap)) for overlap in (False, True))
    pair.close()
    common = [
        next((i for i, (one, other) in enumerate(zip(*ids)) if one != other), length)
        for ids in zip(texts["cpu"], texts[str(device)])
    ]
    return {
        "prompts": prompts,
        "length": length,
        "same_tokens": sum(common) / len(common),
        "plain_tokens_per_second": plain,
        "speculative_over_plain": speculative / plain,
        "ahead_over_speculative": ahead / alone,
    }


def _speed(pair: SpeculativePair, prompts: list[list[int]], config: DecodeConfig, method: str = "speculative") -> float:
    """Return the tokens per second of decoding some prompts, without reading them."""
    pair.generate(prompts[0], config, method)
    return DecodeStats.sum(pair.generate(ids, config, method).stats for ids in prompts).tokens_per_second
