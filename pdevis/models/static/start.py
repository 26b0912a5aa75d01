"""Turning static shapes and graphs on for a stack: the settings, the start-up, and what is said about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pdevis.config import DecodeConfig
from pdevis.models.stack import DecoderStack
from pdevis.models.static.fused_forward import unsupported
from pdevis.models.static.static_forward import BACKENDS, CPU_WIDTHS, DRAFTER_WIDTHS, TARGET_WIDTHS, StaticForward
from pdevis.util.validation import first_line

GRAPHS = ("auto", "on", "off")
CHECKED_TOKENS = 16
CONTEXT_TOKENS = 24  # before those of the check


def uses_graphs(graphs: str, device: torch.device) -> bool:
    """Return what a setting of `GRAPHS` means on a device: "auto" is on for CUDA."""
    return graphs == "on" or (graphs == "auto" and device.type == "cuda")


def use_static_shapes(stack: DecoderStack, role: str, *, backend: str = "compiled") -> None:
    """Let a stack run its short forwards in static shapes from now on. Makes nothing yet.

    Args:
        stack: with all layers on one device.
        role: "target" or "drafter".
        backend: as for `StaticForward`.
    """
    widths = (TARGET_WIDTHS if role == "target" else DRAFTER_WIDTHS) if stack.device.type == "cuda" else CPU_WIDTHS
    stack.static = StaticForward(stack, widths, backend=backend)


def set_up_static_shapes(stack: DecoderStack, role: str, on_progress: Callable[[str], None]) -> None:
    """Let a stack run in static shapes: on CUDA captured now (`start_graphs`), elsewhere compiled at first use."""
    if stack.device.type == "cuda":
        start_graphs(stack, role, on_progress)
    else:
        use_static_shapes(stack, role)


def start_graphs(stack: DecoderStack, role: str, on_progress: Callable[[str], None]) -> None:
    """Compile and capture a stack's forwards on a GPU now, so that the first answer does not wait for it.

    If one backend fails, the next one is tried; if all do, forwards run without graphs. Each failure is reported.
    """
    use_static_shapes(stack, role)
    usable = [name for name in BACKENDS if name != "fused" or not unsupported(stack.weights, stack.static.exact)]
    for backend, other in zip(usable, [*usable[1:], None]):
        use_static_shapes(stack, role, backend=backend)
        on_progress(f"capturing the {role}'s graphs ({BACKENDS[backend]})")
        start = time.perf_counter()
        try:
            _run_all_widths(stack)
        except Exception as error:
            remedy = f"{BACKENDS[other]} instead" if other else "its forwards run without graphs"
            reason = f"{type(error).__name__}: {first_line(error)}"
            on_progress(f"note: no graphs of the {role} with {BACKENDS[backend]} ({reason}): {remedy}")
            stack.static = None
        else:
            ready = BACKENDS[stack.static.backend]
            on_progress(f"note: the {role}'s graphs ({ready}) took {time.perf_counter() - start:.0f} s")
            return


def start_pair_graphs(pair: Any, graphs: str, on_progress: Callable[[str], None]) -> dict[str, str]:
    """Run a pair's models in static shapes if asked for; on CUDA, capture graphs, check the target, and decode once.

    Returns the label {"graphs": "on"} if one of them does, else {}. Models that transformers runs, and those in other
    processes, are left as they are.
    """
    labels = {}
    for role, model in (("target", pair.target), ("drafter", pair.drafter)):
        if not isinstance(model, DecoderStack) or not uses_graphs(graphs, model.device):
            continue
        if graphs == "auto" and model.weights.precision == "nf4":  # whose fast kernel is for a single row
            continue
        set_up_static_shapes(model, role, on_progress)
        if model.device.type == "cuda" and role == "target":
            on_progress(f"note: {describe_differing_rows(count_differing_rows(model))}")
        if model.static is not None:
            labels["graphs"] = "on"
    if labels and pair.target.device.type == "cuda":  # captures what drafts need, in a process of their own too
        pair.generate([0], DecodeConfig(max_new_tokens=8, eos_ids=()))
    return labels


@torch.inference_mode()
def _run_all_widths(stack: DecoderStack) -> None:
    stack.tokens = []
    try:
        for width in stack.static.widths:
            stack.rewind(0)
            stack.run_static(torch.zeros(width, dtype=torch.long, device=stack.device))
    finally:
        stack.rewind(0)


@torch.inference_mode()
def count_differing_rows(stack: DecoderStack, tokens: int = CHECKED_TOKENS) -> int:
    """Return how many of some tokens have other logits, bit for bit, at once than one by one. Empties the cache.

    Greedy speculative decoding writes exactly the plain decoder's text if there is none.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(stack.vocab_size, (CONTEXT_TOKENS + tokens,), generator=generator).to(stack.device)
    stack.rewind(0)
    stack.tokens = []
    try:
        stack.prefill(ids[:CONTEXT_TOKENS])
        at_once = stack.forward(ids[CONTEXT_TOKENS:]).clone()
        stack.rewind(CONTEXT_TOKENS)
        alone = torch.cat([stack.forward(ids[i : i + 1]) for i in range(CONTEXT_TOKENS, CONTEXT_TOKENS + tokens)])
    finally:
        stack.rewind(0)
    return int((at_once != alone).any(-1).sum())


def describe_differing_rows(count: int, tokens: int = CHECKED_TOKENS) -> str:
    """Return what `count_differing_rows` has found, as a line."""
    if count == 0:
        return f"the target gives {tokens} tokens the same bits at once and one by one"
    return (
        f"the target gives {count} of {tokens} tokens other bits at once than one by one: greedy text can differ from "
        "plain decoding's where two tokens are equally good"
    )
