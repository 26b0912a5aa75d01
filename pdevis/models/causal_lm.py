"""`CausalLM`, the interface of a model that decodes one sequence with a KV cache that can be rewound.

Shapes: T = tokens of a call, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 512  # prompt tokens per forward: bounds the attention mask and the activations


class CausalLM(Protocol):
    """A language model with one sequence in a KV cache that can be rewound."""

    vocab_size: int
    context_length: int
    device: torch.device
    tokens: list[int]  # ids in the cache as far as the decoder knows; lets the next generation reuse a prefix

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        ...

    def forward(self, ids: Tensor) -> Tensor:
        """Append ids [T] to the cache; return the logits [T, V] of each of them."""
        ...

    def prefill(self, ids: Tensor) -> None:
        """Append ids [T] to the cache."""
        ...

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens of the cache."""
        ...


def argmax_logprob(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the argmax [1] of logits [V] (lowest id on ties) and its log-probability [1]."""
    best = logits.argmax(-1, keepdim=True)
    return best, logits[best].float() - logits.float().logsumexp(-1)


def load_prompt(model: CausalLM, prompt: list[int], reuse: bool, read: Callable[[Tensor], None]) -> None:
    """Bring a model's cache to the prompt without its last token.

    Args:
        model: its cache is rewound and filled.
        prompt: token ids, at least one.
        reuse: keep the entries of the prefix that cache and prompt share.
        read: appends ids [T] to the cache.
    """
    wanted = prompt[:-1]
    shared = 0
    if reuse:
        limit = min(len(model.tokens), len(wanted), model.length)
        shared = next((i for i in range(limit) if model.tokens[i] != wanted[i]), limit)
    model.rewind(shared)
    model.tokens = wanted[:shared]
    if getattr(model, "static", None):
        model.cache.clear_scratch()
    if wanted[shared:]:
        try:
            read(torch.tensor(wanted[shared:], device=model.device))
        except BaseException:  # some chunks may be in the cache already
            model.rewind(min(shared, model.length))
            raise
