"""DecoderStack: a minimal forward pass of Llama-like families that can run any sublayer on any hidden state.

One sequence, one preallocated key/value cache per layer, no modules, no hooks. `attention` and `mlp` return a
sublayer's *update* of the residual stream, so that a drafting engine decides which updates are added to which state.

Shapes: T = tokens of this call, S = tokens in the cache after it, H = hidden size, N = query heads, K = key/value
heads, G = N / K, D = head size, I = MLP size, V = vocabulary, C = capacity of the cache, W = lanes of a wide layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.causal_lm import CHUNK
from pdevis.models.kv_cache import KVCache
from pdevis.models.layers import Attention, RotaryEmbedding, StackWeights, apply_rotary

# On CPU a target's attention of up to this many tokens runs token by token: GEMM results are not batch-invariant, and
# verification has to give the bits of plain decoding. It costs a few per cent of a small model's time.
ROWWISE_ATTENTION_MAX_TOKENS = 17


class StaticShapes(Protocol):
    """Forwards in static shapes (static/static_forward.py), in place of `DecoderStack.run_layers`."""

    max_tokens: int  # longest call

    def run(self, ids: Tensor, start: int, blocks: Any = None) -> Tensor:
        """Compute hidden states after the last layer for ids [T] at positions from `start`, and write the cache.

        The first T rows of the result are those of the ids; others are padding.
        """
        ...

    def room(self, start: int) -> int:
        """Return how many tokens from position `start` on one forward computes as it does one by one."""
        ...

    def forget(self) -> None:
        """Drop everything that was made with the stack's own layers, which have been replaced."""
        ...

    def drop(self, blocks: Any) -> None:
        """Drop what was made with some blocks, so that their memory can be freed."""
        ...


@dataclass(frozen=True)
class Step:
    """One forward's positions, rotary factors and attention mask, the same for all layers."""

    start: int
    end: int
    rope: Tensor  # [T, 1, N + 2K, D / 2] complex: rotary factors of q and k, 1 for v
    mask: Tensor | None  # [G T, S], 0 or -inf; None: each token's attention is computed separately


class DecoderStack:
    """A decoder of a supported family: `StackWeights` with its own KV cache and rotary table.

    Args:
        weights: of all layers.
        batch_invariant: on CPU, compute the same bits for a few tokens at once as one by one. A drafter needs not.
    """

    def __init__(self, weights: StackWeights, *, batch_invariant: bool = True) -> None:
        self.weights = weights
        self.layers = list(weights.layers)
        self.shares_weights = False  # True if another model has the same `StackWeights`
        self.device = weights.device
        self.vocab_size = weights.vocab_size
        self.context_length = weights.context_length
        self.tokens: list[int] = []
        self.cache = KVCache(
            [layer.attention is not None for layer in weights.layers],
            kv_heads=weights.kv_heads,
            head_dim=weights.head_dim,
            dtype=weights.dtype,
            device=weights.device,
            max_tokens=weights.context_length,
        )
        self.static: StaticShapes | None = None  # used by forwards that are short enough and not traced
        self.shared_sublayers: set[tuple[str, int]] = set()  # those that use parts of wide matrices
        self.prepared: dict[Any, Any] = {}  # static schedules with their wide layers (drafting/wide_layers.py)
        self._rotary = RotaryEmbedding(weights.frequencies, weights.rope_scale, weights.dtype)
        self._scale = weights.head_dim**-0.5
        self._rowwise_max_tokens = 1
        if batch_invariant and weights.device.type == "cpu":
            self._rowwise_max_tokens = ROWWISE_ATTENTION_MAX_TOKENS

    def with_own_cache(self) -> DecoderStack:
        """Return another model with the same weights."""
        other = DecoderStack(self.weights)
        self.shares_weights = other.shares_weights = True
        return other

    @property
    def length(self) -> int:
        return self.cache.length

    @property
    def rope_table(self) -> Tensor:
        """Cosine and sine of the rotary embedding at every position of the cache: [C, D / 2, 2]."""
        return torch.view_as_real(self._rotary.table)

    def rewind(self, length: int) -> None:
        self.cache.rewind(length)

    def reserve(self, tokens: int) -> None:
        """Provide cache entries and rotary factors for `tokens` tokens."""
        if tokens > min(self.cache.capacity, len(self._rotary.table)):
            self.cache.reserve(tokens)
            self._rotary.reserve(self.cache.capacity)

    # ---- one forward, sublayer by sublayer ----

    def begin(self, tokens: int) -> Step:
        """Prepare a forward of `tokens` tokens after those in the cache; `commit` adds them to the cache."""
        start, end = self.cache.length, self.cache.length + tokens
        self.reserve(end)
        w, mask = self.weights, None
        if tokens > self._rowwise_max_tokens:
            rows = torch.full((tokens, end), -torch.inf, dtype=w.dtype, device=self.device).triu_(start + 1)
            mask = rows.repeat(w.heads // w.kv_heads, 1)
        return Step(start, end, self.rope_factors(slice(start, end)), mask)

    def rope_factors(self, positions: slice | Tensor) -> Tensor:
        """Return the rotary factors [T, 1, N + 2K, D / 2] of T positions, for which `reserve` has provided."""
        w, rows = self.weights, self._rotary.table[positions]
        factors = rows.new_ones(len(rows), 1, w.heads + 2 * w.kv_heads, w.head_dim // 2)
        factors[:, :, : w.heads + w.kv_heads] = rows[:, None, None]
        return factors

    def commit(self, step: Step) -> None:
        """Add the step's tokens to the cache, after every layer has written its entries."""
        self.cache.commit(step.end)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the embeddings of ids [T]: hidden states [T, H]."""
        return F.embedding(ids, self.weights.embedding)

    def attention(self, layer: int, h: Tensor, step: Step) -> Tensor:
        """Compute a layer's attention update [T, H] for h [T, H]; write the layer's cache entries of this step."""
        attention = self.layers[layer].attention
        return attention.output(self.mix_heads(attention, h, step))

    def project_heads(self, attention: Attention, h: Tensor, rope: Tensor) -> Tensor:
        """Compute queries, keys and values [T, W, N + 2K, D] of h [T, H] at the positions of the rotary factors."""
        w = self.weights
        qkv = attention.qkv(attention.norm(h)).view(len(h), len(attention.layers), -1, w.head_dim)
        if attention.qk_norm is not None:
            qk_heads = w.heads + w.kv_heads
            qkv[:, :, :qk_heads] = attention.qk_norm(qkv[:, :, :qk_heads])
        return apply_rotary(qkv, rope)

    def mix_heads(self, attention: Attention, h: Tensor, step: Step) -> Tensor:
        """Compute the heads' outputs [T, W N D] of an attention for h [T, H]; write its cache entries of this step."""
        w, layers = self.weights, attention.layers
        tokens, lanes, groups = len(h), len(layers), w.heads // w.kv_heads
        qkv = self.project_heads(attention, h, step.rope)
        self.cache.write(layers, step.start, step.end, qkv[:, :, w.heads :])
        # The query heads of one key head become rows of one product, so that keys and values are not copied.
        queries = qkv[:, :, : w.heads].view(tokens, lanes, w.kv_heads, groups, -1)  # [T, W, K, G, D]
        if step.mask is None:
            mixed = [self._attend(queries[i], layers, step.start + i + 1) for i in range(tokens)]
            return (mixed[0] if tokens == 1 else torch.stack(mixed)).reshape(tokens, -1)
        queries = queries.permute(1, 2, 3, 0, 4).flatten(2, 3)  # [W, K, G T, D]
        mixed = self._attend(queries, layers, step.end, step.mask).unflatten(2, (groups, tokens))
        return mixed.permute(3, 0, 1, 2, 4).reshape(tokens, -1)

    def _attend(self, queries: Tensor, layers: range, end: int, mask: Tensor | None = None) -> Tensor:
        """Attend with queries [W, K, rows, D] to some layers' first `end` cache entries; same shape as the queries."""
        keys, values = self.cache.read(layers, end)  # [W, K, S, D]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self._scale)

    def mlp(self, layer: int, h: Tensor) -> Tensor:
        """Compute a layer's MLP update [T, H] for h [T, H]."""
        return self.mlp_outer(layer, self.mlp_inner(layer, h))

    def mlp_inner(self, layer: int, h: Tensor) -> Tensor:
        """Compute a layer's inner MLP state [T, I] for h [T, H], or the columns of it that this device holds."""
        return self.layers[layer].mlp.inner(h)

    def mlp_outer(self, layer: int, inner: Tensor) -> Tensor:
        """Compute the update [T, H] from the whole inner state [T, I], or the columns that this device holds."""
        return self.layers[layer].mlp.down(inner)

    def logits(self, h: Tensor) -> Tensor:
        """Compute logits [T, V] from hidden states after the last layer [T, H]."""
        return self.weights.head(self.weights.final_norm(h))

    # ---- whole forwards ----

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """Append ids [T] to the cache and return the hidden states after the last layer, [T, H].

        Args:
            ids: the tokens.
            trace: receives h_0 (embedding) to h_L, [T, H] each. A traced forward has no static shape.
        """
        if self.static and trace is None and len(ids) <= self.static.max_tokens:
            return self.run_static(ids)[: len(ids)]
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

    def run_static(self, ids: Tensor, blocks: Any = None) -> Tensor:
        """Run layers in static shapes, like `run_layers`, but with rows of padding after those of the ids.

        The next call overwrites the result.

        Args:
            ids: [T], at most `static.max_tokens`.
            blocks: the layers (static/static_forward.py); None: all, exactly.
        """
        start = self.cache.length
        h = self.static.run(ids, start, blocks)
        self.cache.commit(start + len(ids))
        return h

    def forward(self, ids: Tensor) -> Tensor:
        if self.static and len(ids) <= self.static.max_tokens:  # the output head has a fixed number of rows too
            return self.logits(self.run_static(ids))[: len(ids)]
        return self.logits(self.run_layers(ids))

    def prefill(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK):
            self.run_layers(chunk)
