"""Log-likelihoods of tokens under a model, one sequence at a time, reusing the prefix shared with the last sequence.

Shapes: T = tokens of this call, C = tokens that are scored, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdevis.models.causal_lm import CausalLM

CHUNK_TOKENS = 256  # tokens whose logits are in memory at a time: [CHUNK_TOKENS, V]


class Scorer:
    """Score continuations with a model. The scorer owns the model's cache until `reset`."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self._cached: list[int] = []  # tokens in the model's cache

    def reset(self) -> None:
        """Forget the cached tokens. Needed before and after anything else uses the model."""
        self._cached = []
        self.model.tokens = []
        self.model.rewind(0)

    @torch.inference_mode()
    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Return Σ log p(continuation | context) in nats, and True if greedy decoding would write the continuation.

        Args:
            context: at least one token.
            continuation: at least one token; context and continuation without their last token fit the model.
        """
        assert context
        assert continuation
        ids = context + continuation[:-1]
        first = len(context) - 1  # the position that predicts the first token of the continuation
        start = min(_common_prefix_length(self._cached, ids), first)
        self.model.rewind(start)
        self._cached = self._cached[:start]
        if start < first:
            self.model.prefill(self._tensor(ids[start:first]))
        total, greedy = 0.0, True
        for begin in range(first, len(ids), CHUNK_TOKENS):
            inputs = ids[begin : begin + CHUNK_TOKENS]
            scored = self._tensor(continuation[begin - first : begin - first + len(inputs)])  # [C]
            logits = self.model.forward(self._tensor(inputs))  # [C, V]
            total += _log_probs(logits, scored).sum().item()
            greedy = greedy and bool((logits.argmax(-1) == scored).all())
        self._cached = ids
        return total, greedy

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.model.device)  # [T]


def _log_probs(logits: Tensor, scored: Tensor) -> Tensor:
    """Return log p of the scored tokens [C], from logits [C, V], in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, -1).gather(-1, scored[:, None])[:, 0].double()


def _common_prefix_length(first: list[int], second: list[int]) -> int:
    """Number of leading tokens that both lists share."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
