"""DecoderStack: a lean forward of Llama, Qwen2 and Qwen3 that lets a caller run any sublayer on any hidden state.

One sequence, one preallocated key/value cache per layer, no modules, no hooks. `attention` and `mlp` return a
sublayer's *update* of the residual stream, so that a drafting engine decides what is added to what.

Shapes: T = tokens of this call, S = tokens in the cache after it, H = hidden size, N = query heads, K = key/value
heads, G = N / K, D = head size, V = vocabulary. `KV cache[layer]` is [capacity, 2K, D]: keys, then values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.causal_lm import CHUNK
from pdevis.models.layers import StackWeights

FIRST_CAPACITY = 512  # tokens the cache holds at first; it doubles
# On CPU the attention of up to so many tokens runs token by token: what a row of a larger product rounds to depends on
# the others there, and verification is to give the plain decoder's bits. It costs a few per cent of a small model.
ONE_BY_ONE = 17


class WholeForward(Protocol):
    """Another way to run all layers at once."""

    most: int  # tokens

    def run(self, ids: Tensor, start: int) -> Tensor:
        """Hidden states [T, H] after the last layer of ids [T] from position `start` on; writes the cache."""
        ...


@dataclass(frozen=True)
class Step:
    """What all layers of one forward share: where its tokens stand, how they turn, what they may see."""

    start: int
    end: int
    turn: Tensor  # [T, N + 2K, D / 2] complex: the rotary embedding of q and k, 1 for v
    mask: Tensor | None  # [G T, S], 0 or -inf; None where each token attends by itself


class DecoderStack:
    """A decoder of a supported family over `StackWeights`, with a cache of its own."""

    def __init__(self, weights: StackWeights) -> None:
        self.weights = weights
        self.layers = weights.layers
        self.device = weights.device
        self.vocab_size = weights.vocab_size
        self.context_length = weights.context_length
        self.tokens: list[int] = []
        self._length = 0
        self._cache: list[Tensor] = []
        self._halves: list[tuple[Tensor, ...]] = []
        self._turns = torch.empty(0)
        self._scale = weights.head_dim**-0.5
        self._one_by_one = ONE_BY_ONE if weights.device.type == "cpu" else 1
        self.whole: WholeForward | None = None  # runs forwards without a trace, where it is set (compiled.py)

    @property
    def length(self) -> int:
        return self._length

    @property
    def cache(self) -> list[Tensor]:
        """Per layer [capacity, 2K, D]; rows beyond `length` are scratch."""
        return self._cache

    @property
    def turns(self) -> Tensor:
        """[capacity, D / 2, 2]: cosine and sine of every position's rotary embedding."""
        return torch.view_as_real(self._turns)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self._length, f"rewind to {length} of {self._length} tokens"
        self._length = length

    # ---- one forward, sublayer by sublayer ----

    def begin(self, tokens: int) -> Step:
        """Prepare a forward of `tokens` tokens behind the cache; `commit` makes them part of it."""
        start, end = self._length, self._length + tokens
        self.reserve(end)
        w = self.weights
        turn = self._turns.new_ones(tokens, w.heads + 2 * w.kv_heads, w.head_dim // 2)
        turn[:, : w.heads + w.kv_heads] = self._turns[start:end, None]
        mask = None
        if tokens > self._one_by_one:
            rows = torch.full((tokens, end), -torch.inf, dtype=w.dtype, device=self.device).triu_(start + 1)
            mask = rows.repeat(w.heads // w.kv_heads, 1)
        return Step(start, end, turn, mask)

    def commit(self, step: Step) -> None:
        self._length = step.end

    def embed(self, ids: Tensor) -> Tensor:
        """ids [T] -> hidden states [T, H]."""
        return F.embedding(ids, self.weights.embedding)

    def attention(self, layer: int, h: Tensor, step: Step) -> Tensor:
        """The update [T, H] of a layer's attention on h [T, H]; writes the layer's cache entries of this step."""
        w, parts = self.weights, self.layers[layer].attention
        tokens, groups = len(h), w.heads // w.kv_heads
        qkv = parts.qkv(parts.norm(h)).view(tokens, -1, w.head_dim)  # [T, N + 2K, D]
        if parts.qk_norm is not None:
            turned = w.heads + w.kv_heads
            qkv[:, :turned] = parts.qk_norm(qkv[:, :turned])
        qkv = _turn(qkv, step.turn)
        self._cache[layer][step.start : step.end] = qkv[:, w.heads :]
        # The query heads that share a key head become rows of one product: no copies of keys and values.
        queries = qkv[:, : w.heads].unflatten(1, (w.kv_heads, groups))  # [T, K, G, D]
        if step.mask is None:
            mixed = [self._attend(queries[i : i + 1], layer, step.start + i + 1) for i in range(tokens)]
            return parts.output((mixed[0] if tokens == 1 else torch.cat(mixed)).reshape(tokens, -1))
        queries = queries.permute(1, 2, 0, 3).flatten(1, 2)[None]
        mixed = self._attend(queries, layer, step.end, step.mask)
        return parts.output(mixed[0].unflatten(1, (groups, tokens)).permute(2, 0, 1, 3).reshape(tokens, -1))

    def _attend(self, queries: Tensor, layer: int, end: int, mask: Tensor | None = None) -> Tensor:
        """queries [1, K, rows, D] on the first `end` cache entries of a layer, like [1, K, rows, D]."""
        keys, values = (half.narrow(2, 0, end) for half in self._halves[layer])  # [1, K, S, D]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self._scale)

    def mlp(self, layer: int, h: Tensor) -> Tensor:
        """The update [T, H] of a layer's MLP on h [T, H]."""
        return self.mlp_outer(layer, self.mlp_inner(layer, h))

    def mlp_inner(self, layer: int, h: Tensor) -> Tensor:
        """An MLP's inner state on h [T, H]: [T, I], or the part of I that this device holds."""
        return self.layers[layer].mlp.inner(h)

    def mlp_outer(self, layer: int, inner: Tensor) -> Tensor:
        """From an MLP's whole inner state [T, I] to its update [T, H], or the part of H that this device holds."""
        return self.layers[layer].mlp.down(inner)

    def logits(self, h: Tensor) -> Tensor:
        """Hidden states after the last layer [T, H] -> logits [T, V]."""
        return self.weights.head(self.weights.final_norm(h))

    # ---- whole forwards ----

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """Append ids [T]; hidden states after the last layer [T, H]. `trace` collects h_0 (embedding) to h_L."""
        if self.whole and trace is None and len(ids) <= self.whole.most:
            h = self.whole.run(ids, self._length)
            self._length += len(ids)
            return h
        step = self.begin(len(ids))
        h = self.embed(ids)
        if trace is not None:
            trace.append(h)
        for layer in range(len(self.layers)):
            h = h + self.attention(layer, h, step)
            h = h + self.mlp(layer, h)
            if trace is not None:
                trace.append(h)
        self.commit(step)
        return h

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.run_layers(ids))

    def prefill(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK):
            self.run_layers(chunk)

    # ---- memory ----

    @torch.inference_mode(False)  # so that the cache may be written in and out of inference mode
    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens: cache rows and rotary factors."""
        capacity = len(self._turns)
        if tokens <= capacity:
            return
        w = self.weights
        capacity = max(FIRST_CAPACITY, tokens, min(2 * capacity, w.context_length))
        angles = torch.arange(capacity, device=self.device)[:, None] * w.frequencies  # [capacity, D / 2], float32
        wide = torch.float64 if w.dtype == torch.float64 else torch.float32
        turns = torch.polar(torch.full_like(angles, w.rope_scale, dtype=wide), angles.to(wide))
        grown = []
        for layer, parts in enumerate(self.layers):
            here = capacity if parts.attention else 0  # an attention on another device has its cache there
            rows = torch.zeros(here, 2 * w.kv_heads, w.head_dim, dtype=w.dtype, device=self.device)
            if here and self._cache:
                rows[: self._length] = self._cache[layer][: self._length]
            grown.append(rows)
        # [1, K, capacity, D] views of keys and values, made once: each view costs as much as a small product
        halves = [tuple(half.transpose(0, 1)[None] for half in rows.chunk(2, dim=1)) for rows in grown]
        # The capacity is read off the turns: they come last, so that a failure on the way changes nothing.
        self._cache, self._halves, self._turns = grown, halves, turns


def _turn(qkv: Tensor, turn: Tensor) -> Tensor:
    """The rotary embedding of qkv [T, N + 2K, D]; in place where the dtype has a complex partner."""
    if qkv.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(qkv.view(*turn.shape, 2)).mul_(turn)
        return qkv
    turned = torch.view_as_complex(qkv.float().view(*turn.shape, 2)) * turn
    return torch.view_as_real(turned).view_as(qkv).to(qkv.dtype)
