"""Teacher forcing: a static schedule run on text whose exact hidden states, keys and values are known.

After calibration a draft token finds exact cache entries of the tokens before it. So its computation depends on the
exact pass alone, and many positions of a text run under a schedule at once: each attends to the exact entries before it
and to its own approximate one.

    states = ExactStates(stack, documents, positions=256)
    h = states.run(prepared.layers, states.hidden[0])
    change = states.output_change(h)

Shapes: P = positions, T = tokens of a document, H = hidden size, V = vocabulary, L = layers, W = lanes, N = query
heads, K = key/value heads, G = N / K, D = head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdevis.drafting.wide_layers import PreparedLayer
from pdevis.models.kv_cache import split_keys_values
from pdevis.models.layers import Attention
from pdevis.models.stack import DecoderStack

FIRST_POSITION = 8  # of a document; tokens before it have hardly any context
LOGIT_ROWS = 64  # positions whose logits are computed at a time


@dataclass(frozen=True)
class OutputChange:
    """Difference between the output under a schedule and the exact output, averaged over positions.

    Args:
        kl: KL divergence of the schedule's distribution from the exact one, in nats.
        changed: share of positions where the most probable token is another one.
        retention: predicted part of the exact acceptance rate that is kept, if the target writes each token with the
            probability that the exact drafter gives it: the mean probability of the schedule's most probable token,
            divided by that of the exact one's.
        self_retention: the same if the target has the drafter's own weights and writes its most probable token: the
            share of unchanged positions, weighted by that token's probability (greedy text has more of the sure ones).
    """

    kl: float
    changed: float
    retention: float
    self_retention: float


@dataclass(frozen=True)
class _Document:
    """Exact entries of one document, and the positions of it that are measured."""

    rows: slice  # of the P positions
    positions: Tensor  # [p]
    entries: Tensor  # [L, T, 2K, D]


class ExactStates:
    """The exact pass over documents: hidden states at some positions, keys and values at all.

    Args:
        stack: the drafter; its cache is used, and empty afterwards.
        documents: token ids.
        positions: number of positions, evenly spaced over all documents; None: all.
    """

    def __init__(self, stack: DecoderStack, documents: Sequence[Sequence[int]], positions: int | None) -> None:
        self.stack = stack
        self.device = stack.device
        available = sum(max(0, len(document) - FIRST_POSITION) for document in documents)
        stride = 1 if positions is None else max(1, available // positions)
        self.documents: list[_Document] = []
        hidden: list[list[Tensor]] = []
        count = 0
        for document in documents:
            chosen = torch.arange(FIRST_POSITION, len(document), stride, device=stack.device)
            if not len(chosen):
                continue
            stack.rewind(0)
            trace: list[Tensor] = []
            stack.run_layers(torch.tensor(document, device=stack.device), trace)
            hidden.append([state[chosen] for state in trace])
            rows = slice(count, count + len(chosen))
            self.documents.append(_Document(rows, chosen, stack.cache.storage[:, : len(document)].clone()))
            count += len(chosen)
        stack.rewind(0)
        stack.tokens = []
        self.hidden = [torch.cat(states) for states in zip(*hidden)]  # h_0 to h_L, [P, H] each
        self.rope = stack.rope_factors(torch.cat([document.positions for document in self.documents]))
        self._exact_logprobs: list[Tensor] = []

    def run(self, layers: Iterable[PreparedLayer], h: Tensor) -> Tensor:
        """Run groups on the states h [P, H] of all positions; return the states after them."""
        forced: Any = self  # has what layers need of a stack: `mix_heads`
        for layer in layers:
            h = layer.run(forced, h, None)
        return h

    def mix_heads(self, attention: Attention, h: Tensor, step: None = None) -> Tensor:
        """Compute `DecoderStack.mix_heads` for h [P, H]: on exact entries, and on a position's own new one."""
        w = self.stack.weights
        groups = w.heads // w.kv_heads
        qkv = self.stack.project_heads(attention, h, self.rope)
        queries = qkv[:, :, : w.heads].unflatten(2, (w.kv_heads, groups)).permute(1, 2, 3, 0, 4)  # [W, K, G, P, D]
        keys, values = (own.permute(1, 2, 0, 3)[:, :, None] for own in qkv[:, :, w.heads :].chunk(2, dim=2))
        mixed = [self._attend(document, attention.layers, queries, keys, values) for document in self.documents]
        return torch.cat(mixed, dim=3).permute(3, 0, 1, 2, 4).reshape(len(h), -1)

    def _attend(self, document: _Document, layers: range, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the queries of a document's positions; returns [W, K, G, p, D]."""
        rows = document.rows
        q, own_key, own_value = queries[:, :, :, rows], keys[:, :, :, rows], values[:, :, :, rows]
        exact_keys, exact_values = split_keys_values(document.entries[layers.start : layers.stop : layers.step])
        tokens = torch.arange(document.entries.shape[1], device=self.device)
        scores = q @ exact_keys[:, :, None].transpose(-1, -2)  # [W, K, G, p, T]
        own_score = (q * own_key).sum(-1, keepdim=True)
        scores = scores.masked_fill(tokens >= document.positions[:, None], -torch.inf)
        scale = self.stack.weights.head_dim**-0.5
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = (torch.cat([scores, own_score], -1).to(wide) * scale).softmax(-1).to(q.dtype)
        return weights[..., :-1] @ exact_values[:, :, None] + weights[..., -1:] * own_value

    def exact_logprobs(self) -> list[Tensor]:
        """Return the exact log-probabilities of the next token, in blocks [≤ LOGIT_ROWS, V]; computed once."""
        if not self._exact_logprobs:
            self._exact_logprobs = [self._logprobs(block) for block in self.hidden[-1].split(LOGIT_ROWS)]
        return self._exact_logprobs

    def change_under(self, layers: Iterable[PreparedLayer]) -> OutputChange:
        """Run a whole schedule, and compare its output with the exact output."""
        return self.output_change(self.run(layers, self.hidden[0]))

    def output_change(self, h: Tensor) -> OutputChange:
        """Compare the output of last states h [P, H] with the exact output."""
        kl, changed, kept, kept_unchanged, best = 0.0, 0, 0.0, 0.0, 0.0
        for block, exact in zip(h.split(LOGIT_ROWS), self.exact_logprobs()):
            logprobs = self._logprobs(block)
            probs = exact.exp()
            kl += float((probs * (exact - logprobs)).sum())
            chosen, exact_choice = logprobs.argmax(-1, keepdim=True), exact.argmax(-1, keepdim=True)
            changed += int((chosen != exact_choice).sum())
            kept += float(probs.gather(-1, chosen).sum())
            exact_probs = probs.gather(-1, exact_choice)
            kept_unchanged += float(exact_probs[chosen == exact_choice].sum())
            best += float(exact_probs.sum())
        return OutputChange(kl / len(h), changed / len(h), kept / best, kept_unchanged / best)

    def _logprobs(self, h: Tensor) -> Tensor:
        return self.stack.logits(h).float().log_softmax(-1)
