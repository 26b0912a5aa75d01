"""Timing of forwards: whole ones over k tokens, their sublayers, and a round under several thread counts.

Every forward follows the same context and is rewound. The two models are timed interleaved, so that a machine whose
speed drifts affects both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdevis.models.stack import DecoderStack

if TYPE_CHECKING:
    from pdevis.models.causal_lm import CausalLM

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)  # tokens of a forward
ROUND_GAMMA = 4  # draft tokens of the round that thread counts are compared by
MIN_CONTEXT_TOKENS = 64  # in the KV cache before a timed forward, if the model's context allows
SUBLAYERS = ("attention", "mlp", "head")


def synchronized_time(device: torch.device) -> float:
    """Return `perf_counter` after the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class TimedModel:
    """A model with a context in its KV cache, ready for forwards that leave the cache unchanged.

    Args:
        model: its cache is used.
        text: ids. The last `max(WIDTHS)` are the input of the timed forwards, the others their context.

    Raises:
        ValueError: the model's context is too short.
    """

    def __init__(self, model: CausalLM, text: Sequence[int]) -> None:
        self.model = model
        ids = [min(token, model.vocab_size - 1) for token in text]  # as the drafter does
        while len(ids) < MIN_CONTEXT_TOKENS + max(WIDTHS):
            ids = ids + ids
        ids = ids[: min(len(ids), model.context_length)]
        self.context_tokens = len(ids) - max(WIDTHS)
        if self.context_tokens < 1:
            raise ValueError(f"context of {model.context_length} tokens: must be above {max(WIDTHS)} to be tuned")
        self.ids = torch.tensor(ids[self.context_tokens :], device=model.device)
        model.rewind(0)
        with torch.inference_mode():
            model.prefill(torch.tensor(ids[: self.context_tokens], device=model.device))
        model.tokens = []  # no generation may reuse this as its prefix

    @torch.inference_mode()
    def forward_seconds(self, width: int) -> float:
        """Time a forward over `width` tokens and the argmax of each."""
        begin = synchronized_time(self.model.device)
        self.model.forward(self.ids[:width]).argmax(-1).tolist()
        seconds = synchronized_time(self.model.device) - begin
        self.model.rewind(self.context_tokens)
        return seconds

    @torch.inference_mode()
    def sublayer_seconds(self, width: int) -> dict[str, float]:
        """Return median times of one attention, one MLP, and the output head; empty without sublayer access."""
        stack = self.model
        if not isinstance(stack, DecoderStack):
            return {}
        step, h = stack.begin(width), stack.embed(self.ids[:width])
        samples: dict[str, list[float]] = {name: [] for name in SUBLAYERS}

        def timed(name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
            begin = synchronized_time(stack.device)
            output = function(*inputs)
            samples[name].append(synchronized_time(stack.device) - begin)
            return output

        for layer in range(len(stack.layers)):
            h = h + timed("attention", stack.attention, layer, h, step)
            h = h + timed("mlp", stack.mlp, layer, h)
        timed("head", stack.logits, h)  # the step is not committed: its cache entries will be overwritten
        return {name: median(values) for name, values in samples.items()}


def time_forwards(models: dict[str, TimedModel], widths: Iterable[int], repeats: int) -> dict[str, dict[int, float]]:
    """Return median seconds by model and width, after one untimed forward of the first and of the last width."""
    widths = list(widths)
    samples: dict[str, dict[int, list[float]]] = {name: {width: [] for width in widths} for name in models}
    for repeat in range(repeats + 1):
        for width in widths if repeat % 2 else reversed(widths):
            for name, model in models.items():
                if repeat or width in (widths[0], widths[-1]):
                    seconds = model.forward_seconds(width)
                    if repeat:
                        samples[name][width].append(seconds)
    return {name: {width: median(values) for width, values in by_width.items()} for name, by_width in samples.items()}


def thread_counts(cores: int, current: int) -> list[int]:
    """Return the thread counts to compare: powers of 2 up to all cores, all cores, and torch's current setting."""
    counts = {1, cores, current}
    power = 2
    while power < cores:
        counts.add(power)
        power *= 2
    return sorted(counts)


def time_thread_counts(
    models: dict[str, TimedModel], counts: Sequence[int], repeats: int
) -> dict[int, dict[str, float]]:
    """Return median seconds by thread count: "draft" of a draft step, "verify" of a verification, "round" of both.

    A model on a GPU is left out. torch's thread count is restored.

    Args:
        models: "target" and "draft".
        counts: thread counts.
        repeats: timings of each.
    """
    initial = torch.get_num_threads()
    forwards = {"target": ("verify", ROUND_GAMMA + 1), "draft": ("draft", 1)}
    on_cpu = [(*forwards[name], model) for name, model in models.items() if model.model.device.type == "cpu"]
    samples: dict[int, dict[str, list[float]]] = {count: {name: [] for name, *_ in on_cpu} for count in counts}
    try:
        for _ in range(repeats):
            for count in counts:
                torch.set_num_threads(count)
                for name, width, model in on_cpu:
                    model.forward_seconds(1)  # starts the threads
                    samples[count][name].append(model.forward_seconds(width))
    finally:
        torch.set_num_threads(initial)
    steps = {"draft": ROUND_GAMMA, "verify": 1}
    medians = {count: {name: median(values) for name, values in by_name.items()} for count, by_name in samples.items()}
    return {
        count: seconds | {"round": sum(steps[name] * seconds[name] for name in seconds)}
        for count, seconds in medians.items()
    }
