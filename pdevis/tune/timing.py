"""How long forwards take: whole ones over k tokens, their sublayers, and a round under several thread counts.

Every forward is behind the same text and is rewound; the models take turns, so that a drifting machine hurts both.

Shapes: T = tokens of a forward.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pdevis.models.stack import DecoderStack

if TYPE_CHECKING:
    from pdevis.models.causal_lm import CausalLM

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)  # tokens of a forward
ROUND = 4  # draft tokens of the round that thread counts are compared by
BEHIND = 64  # tokens of text in the cache, at least, where the text has so many
SUBLAYERS = ("attention", "mlp", "head")


def now(device: torch.device) -> float:
    """The time, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Timed:
    """A model behind a text, ready for forwards that leave no trace.

    Args:
        model: its cache is used.
        text: ids; the last `max(WIDTHS)` are what is run, the others stand in the cache.
    """

    def __init__(self, model: CausalLM, text: Sequence[int]) -> None:
        self.model = model
        known = [min(token, model.vocab_size - 1) for token in text]  # as the drafter does
        while len(known) < BEHIND + max(WIDTHS):
            known = known + known
        known = known[: min(len(known), model.context_length)]
        split = len(known) - max(WIDTHS)
        if split < 1:
            raise ValueError(f"context of {model.context_length} tokens: must be above {max(WIDTHS)} to be tuned")
        self.ids = torch.tensor(known[split:], device=model.device)
        self.start = split
        model.rewind(0)
        with torch.inference_mode():
            model.prefill(torch.tensor(known[:split], device=model.device))
        model.tokens = []  # nobody may take this for a prompt

    @torch.inference_mode()
    def forward(self, width: int) -> float:
        """Seconds of a forward over `width` tokens and the argmax of each."""
        begin = now(self.model.device)
        self.model.forward(self.ids[:width]).argmax(-1).tolist()
        seconds = now(self.model.device) - begin
        self.model.rewind(self.start)
        return seconds

    @torch.inference_mode()
    def sublayers(self, width: int) -> dict[str, float]:
        """Median seconds of one attention, one MLP, and the output head; nothing for a model that hides them."""
        stack = self.model
        if not isinstance(stack, DecoderStack):
            return {}
        step, h = stack.begin(width), stack.embed(self.ids[:width])
        seconds: dict[str, list[float]] = {name: [] for name in SUBLAYERS}

        def timed(name: str, function: object, *inputs: object) -> Tensor:
            begin = now(stack.device)
            result = function(*inputs)
            seconds[name].append(now(stack.device) - begin)
            return result

        for layer in range(len(stack.layers)):
            h = h + timed("attention", stack.attention, layer, h, step)
            h = h + timed("mlp", stack.mlp, layer, h)
        timed("head", stack.logits, h)  # the step is not committed: its cache entries are scratch
        return {name: median(values) for name, values in seconds.items()}


def forward_seconds(models: dict[str, Timed], widths: Iterable[int], repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds by model and width; one round of all widths goes before, untimed."""
    widths = list(widths)
    found: dict[str, dict[int, list[float]]] = {name: {width: [] for width in widths} for name in models}
    for repeat in range(repeats + 1):
        for width in widths if repeat % 2 else reversed(widths):
            for name, model in models.items():
                if repeat or width in (widths[0], widths[-1]):
                    seconds = model.forward(width)
                    if repeat:
                        found[name][width].append(seconds)
    return {name: {width: median(values) for width, values in each.items()} for name, each in found.items()}


def thread_counts(cores: int, current: int) -> list[int]:
    """1, 2, 4, … and all cores, and what torch has chosen."""
    counts = {1, cores, current}
    power = 2
    while power < cores:
        counts.add(power)
        power *= 2
    return sorted(counts)


def thread_seconds(models: dict[str, Timed], counts: Sequence[int], repeats: int) -> dict[int, dict[str, float]]:
    """Median seconds by thread count: "draft" of a draft step, "verify" of a forward over a round's tokens, "round".

    `models` are "target" and "draft"; one on a GPU has no part in it. torch's thread count is left as it was.
    """
    before = torch.get_num_threads()
    kinds = {"target": ("verify", ROUND + 1), "draft": ("draft", 1)}
    on_cpu = [(*kinds[name], model) for name, model in models.items() if model.model.device.type == "cpu"]
    found: dict[int, dict[str, list[float]]] = {count: {name: [] for name, *_ in on_cpu} for count in counts}
    try:
        for _ in range(repeats):
            for count in counts:
                torch.set_num_threads(count)
                for name, width, model in on_cpu:
                    model.forward(1)  # the threads are made here
                    found[count][name].append(model.forward(width))
    finally:
        torch.set_num_threads(before)
    steps = {"draft": ROUND, "verify": 1}
    medians = {count: {name: median(values) for name, values in each.items()} for count, each in found.items()}
    return {count: each | {"round": sum(steps[name] * each[name] for name in each)} for count, each in medians.items()}
