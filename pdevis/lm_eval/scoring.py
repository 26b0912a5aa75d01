"""Log-likelihoods of tokens under a model, one sequence at a time, reusing what neighbouring sequences share.

Shapes: T = tokens of this call, C = tokens that are scored, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdevis.models.causal_lm import CausalLM

ROWS = 256  # tokens whose logits are held at once: [ROWS, V] bounds the memory


class Scorer:
    """Scores continuations with a model whose cache it may use as it likes."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self._cached: list[int] = []  # what the cache holds

    def reset(self) -> None:
        """Forget the cached tokens; needed wherever somebody else has used the model."""
        self._cached = []
        self.model.tokens = []
        self.model.rewind(0)

    @torch.inference_mode()
    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Σ log p(continuation | context) in nats, and whether it is what greedy decoding would write.

        Args:
            context: at least one token.
            continuation: at least one token; context and continuation without their last token fit the model.
        """
        assert context
        assert continuation
        ids = context + continuation[:-1]
        first = len(context) - 1  # the position that predicts the first token of the continuation
        start = min(_shared(self._cached, ids), first)
        self.model.rewind(start)
        self._cached = self._cached[:start]
        if start < first:
            self.model.prefill(self._tensor(ids[start:first]))
        total, greedy = 0.0, True
        for begin in range(first, len(ids), ROWS):
            rows = ids[begin : begin + ROWS]
            wanted = self._tensor(continuation[begin - first : begin - first + len(rows)])
            logits = self.model.forward(self._tensor(rows))
            total += _log_probs(logits, wanted).sum().item()
            greedy = greedy and bool((logits.argmax(-1) == wanted).all())
        self._cached = ids
        return total, greedy

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.model.device)


def _log_probs(logits: Tensor, wanted: Tensor) -> Tensor:
    """log p of the tokens wanted [C], from logits [C, V], in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, -1).gather(-1, wanted[:, None])[:, 0].double()


def _shared(one: list[int], other: list[int]) -> int:
    """Tokens at the beginning that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
