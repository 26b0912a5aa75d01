"""Costs of single models with random weights: draft steps of drafters, verification and plain decoding of targets.

Shapes: T = tokens of a forward.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import torch

from pdevis.benchmarks.gpu.device_times import bytes_per_token, interleaved_medians
from pdevis.benchmarks.speed.baselines import (
    load_transformers_target,
    transformers_dtype,
    transformers_generate,
)
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.models.stack import DecoderStack
from pdevis.models.static.start import count_differing_rows, start_graphs, use_static_shapes

CONTEXT = 64  # tokens of the prompt
DRAFT = 8  # steps whose time is the difference of a draft of 9 tokens and of one
DEPTHS = (1.5, 1.7)  # serial layers of the exact drafter over those of a static schedule
STATIC_CACHE_TOKENS = 32  # that transformers writes per timing, on CUDA with its compiled static cache
KEPT_LAYERS = 2  # first layers that stay alone


def load_random(key: str, role: str, device: torch.device) -> DecoderStack:
    """Load `random:key` in the device's plain format."""
    source = find_source(f"random:{key}")
    spec = LoadSpec(
        source.name,
        role,
        source=source,
        config=read_config(source),
        device=device,
        precision=transformers_dtype(device),
    )
    return build_model(spec)


def pairs_schedule(layers: int, depth: float) -> str:
    """Return the schedule with as many pairs as make a drafter's depth that many times smaller, from layer 2 on."""
    pairs = min(math.ceil(layers * (1 - 1 / depth)), (layers - KEPT_LAYERS - 1) // 2)
    first = min(KEPT_LAYERS, layers - 2 * pairs)
    end = first + 2 * pairs
    alone = [*range(first), *range(end, layers)]
    wide = [f"{layer}+{layer + 1}" for layer in range(first, end, 2)]
    return ",".join([*map(str, alone[:first]), *wide, *map(str, alone[first:])])


def prompt_ids(stack: DecoderStack, count: int = CONTEXT, seed: int = 0) -> list[int]:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(stack.vocab_size, (count,), generator=generator).tolist()


def drafter_costs(key: str, device: torch.device, *, bandwidth: float, repeats: int) -> dict[str, Any]:
    """Time a draft step of a drafter: eager, in graphs, and under static schedules in graphs.

    Args:
        key: of the catalog.
        device: for the weights.
        bandwidth: of the device, bytes per second.
        repeats: of each measurement.

    Returns:
        {"layers", "floor_ms" (bytes over bandwidth), "notes", "steps": {name: {"ms", "share_of_floor", "depth"}}}.
    """
    stack, notes = load_random(key, "drafter", device), []
    floor = bytes_per_token(stack.weights) / bandwidth
    layers = len(stack.layers)
    rules = {"exact": DraftConfig("exact")}
    for depth in DEPTHS:
        text = pairs_schedule(layers, depth)
        rules[f"static {depth:g}x"] = DraftConfig("parallel", check="static", schedule=text)
    steps = {"exact, eager": _step_seconds(stack, rules["exact"], repeats)}
    start_graphs(stack, "drafter", notes.append)
    if stack.static is None and device.type != "cuda":
        use_static_shapes(stack, "drafter", backend="eager")
    for name, rule in rules.items():
        steps[f"{name}, graphs" if stack.static else f"{name}, no graphs"] = _step_seconds(stack, rule, repeats)
    described = {}
    for name, seconds in steps.items():
        depth = float(name.split()[1].rstrip("x,")) if name.startswith("static") else 1.0
        described[name] = {"ms": 1e3 * seconds, "share_of_floor": floor / seconds, "depth": depth}
    return {"layers": layers, "floor_ms": 1e3 * floor, "notes": notes, "steps": described}


def transformers_costs(key: str, device: torch.device, *, bandwidth: float) -> dict[str, Any]:
    """Time a step of a drafter under transformers' `generate` with its static cache, which it compiles on CUDA.

    Returns:
        {"floor_ms", "steps": {name: {"ms", "share_of_floor", "depth"}}}, as `drafter_costs` does.
    """
    stack = load_random(key, "drafter", device)
    floor = bytes_per_token(stack.weights) / bandwidth
    del stack
    free_memory()
    seconds = _transformers_seconds(key, device, STATIC_CACHE_TOKENS, repeats=3, cache_implementation="static")
    step = {"ms": 1e3 * seconds, "share_of_floor": floor / seconds, "depth": 1.0}
    return {"floor_ms": 1e3 * floor, "steps": {"transformers, static cache": step}}


def _step_seconds(stack: DecoderStack, rule: DraftConfig, repeats: int) -> float:
    """Return the seconds of one step of a draft, without its first forward."""
    drafter = Drafter(stack, rule, stack.vocab_size)
    prompt = prompt_ids(stack)
    drafter.open(prompt, DecodeConfig(eos_ids=()))

    def draft(gamma: int) -> None:
        drafter.draft(prompt, gamma)
        drafter.rewind_to_confirmed(prompt)

    works = {"one": lambda: draft(1), "all": lambda: draft(1 + DRAFT)}
    times = interleaved_medians(works, stack.device, repeats)
    drafter.release(prompt)
    return (times["all"] - times["one"]) / DRAFT


def _transformers_seconds(key: str, device: torch.device, length: int, *, repeats: int, **options: Any) -> float:
    """Return the seconds per token of transformers' generate, without the prompt; `options` are those of `generate`."""
    model, _ = load_transformers_target(f"random:{key}", device)
    decode = transformers_generate(model, **options)
    ids = torch.randint(model.config.vocab_size, (CONTEXT,)).tolist()
    few = 2
    # the longest first: a static cache keeps its length then, and the model is compiled once
    works = {"many": lambda: decode(ids, few + length), "few": lambda: decode(ids, few)}
    times = interleaved_medians(works, device, repeats)
    return (times["many"] - times["few"]) / length


def target_costs(
    key: str, device: torch.device, *, bandwidth: float, repeats: int, length: int, peer: bool
) -> dict[str, Any]:
    """Time a target's forwards over 1 to 16 tokens and its plain decoding, in graphs.

    Returns:
        {"floor_ms", "notes", "differing_rows", "verify_ms": {T: ms}, "plain_ms_per_token", "plain_share_of_floor",
        "transformers_ms_per_token" (None: not measured)}.
    """
    stack, notes = load_random(key, "target", device), []
    floor = bytes_per_token(stack.weights) / bandwidth
    start_graphs(stack, "target", notes.append)
    prompt = prompt_ids(stack)
    works = {str(tokens): _verification(stack, prompt, tokens) for tokens in (1, 2, 4, 8, 16)}
    verify = interleaved_medians(works, device, repeats)
    plain = min(_plain_seconds(stack, prompt, length) for _ in range(3))
    differing = count_differing_rows(stack)
    peer_seconds = None
    if peer:
        del stack, works
        free_memory()
        peer_seconds = _transformers_seconds(key, device, length, repeats=2)
    return {
        "floor_ms": 1e3 * floor,
        "notes": notes,
        "differing_rows": differing,
        "verify_ms": {tokens: 1e3 * seconds for tokens, seconds in verify.items()},
        "plain_ms_per_token": 1e3 * plain,
        "plain_share_of_floor": floor / plain,
        "transformers_ms_per_token": None if peer_seconds is None else 1e3 * peer_seconds,
    }


def _plain_seconds(stack: DecoderStack, prompt: list[int], length: int) -> float:
    """Return the seconds per token of plain decoding, without the prompt."""
    stats = DecodeStats()
    config = DecodeConfig(max_new_tokens=length, eos_ids=())
    list(autoregressive(Verifier(stack), prompt, config=config, stats=stats))
    return 1 / stats.tokens_per_second


def _verification(stack: DecoderStack, prompt: list[int], tokens: int) -> Any:
    ids = torch.tensor(prompt_ids(stack, tokens, seed=tokens), device=stack.device)
    before = torch.tensor(prompt, device=stack.device)

    @torch.inference_mode()
    def verify() -> None:
        if stack.length < len(before):
            stack.rewind(0)
            stack.prefill(before)
        stack.rewind(len(before))
        stack.forward(ids).argmax(-1).tolist()

    return verify


def free_memory() -> None:
    """Give the memory of models that are not used any more back to the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
