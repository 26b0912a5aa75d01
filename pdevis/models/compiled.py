"""Forwards of a `DecoderStack` through torch.compile, in static shapes.

A forward of T tokens runs as one of the next larger width in `WIDTHS`: tokens after the T-th are padding, and so are
their cache entries. The position is a tensor and attention covers the whole cache under a mask, so that no shape
depends on the length: one compilation per width and cache capacity, at first use. On CUDA mode="reduce-overhead" turns
each into a CUDA graph (not run on a GPU yet). Products of other libraries are opaque to the compiler: one operator
looks them up.

Shapes: T = tokens of a width, C = capacity of the cache, H = hidden size, N = query heads, K = key/value heads,
G = N / K, D = head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.kv_cache import split_keys_values
from pdevis.models.layers import Attention, Layer
from pdevis.models.linear import DenseLinear, Linear
from pdevis.models.rotation import RotatedInputLinear
from pdevis.models.stack import DecoderStack

WIDTHS = (1, 2, 6, 17)  # draft steps of 1 and 2 tokens; verification of up to 5 and of up to 16 draft tokens

_linears: WeakValueDictionary[int, Linear] = WeakValueDictionary()
_linear_ids = itertools.count()


def compile_stack(stack: DecoderStack) -> None:
    """Run the stack's forwards of up to the largest width compiled from now on. Compiles nothing yet."""
    stack.compiled_forward = StaticShapeForward(stack)


class StaticShapeForward:
    """`CompiledForward` of a stack: one compiled function per width."""

    max_tokens = WIDTHS[-1]

    def __init__(self, stack: DecoderStack) -> None:
        self.stack = stack
        self.layers = [_with_opaque_linears(layer) for layer in stack.layers]
        mode = "reduce-overhead" if stack.device.type == "cuda" else None
        # A separate function per width, so that the compiler's limit of recompilations is never reached.
        self.functions: dict[int, Callable[..., Tensor]] = {
            width: torch.compile(self._make_function(), dynamic=False, fullgraph=True, mode=mode) for width in WIDTHS
        }

    def run(self, ids: Tensor, start: int) -> Tensor:
        """Compute hidden states [T', H] after the last layer for ids [T'] at positions from `start`; T' <= T."""
        width = next(width for width in WIDTHS if width >= len(ids))
        self.stack.reserve(start + width)
        padded = F.pad(ids, (0, width - len(ids)))
        position = torch.tensor(start, device=ids.device)
        h = self.functions[width](padded, position, self.stack.rope_table, self.stack.cache.rows)
        return h[: len(ids)].clone()  # a CUDA graph writes its next result to the same memory

    def _make_function(self) -> Callable[..., Tensor]:
        weights, layers = self.stack.weights, self.layers

        def forward(ids: Tensor, start: Tensor, rope_table: Tensor, storage: list[Tensor]) -> Tensor:
            positions = start + torch.arange(len(ids), device=ids.device)  # [T]
            rope = rope_table[positions][:, None]  # [T, 1, D / 2, 2]
            visible = torch.arange(len(rope_table), device=ids.device) <= positions[:, None]  # [T, C]
            mask = visible.repeat(weights.heads // weights.kv_heads, 1)  # [G T, C]
            h = F.embedding(ids, weights.embedding)
            for layer, rows in zip(layers, storage, strict=True):
                h = h + self._attention(layer.attention, rows, h, positions=positions, rope=rope, mask=mask)
                h = h + layer.mlp.down(layer.mlp.inner(h))
            return h

        return forward

    def _attention(
        self, attention: Attention, rows: Tensor, h: Tensor, *, positions: Tensor, rope: Tensor, mask: Tensor
    ) -> Tensor:
        """Compute `DecoderStack.attention` over a layer's whole cache, `rows` [C, 2K, D]."""
        w, tokens = self.stack.weights, len(h)
        groups, qk_heads = w.heads // w.kv_heads, w.heads + w.kv_heads
        qkv = attention.qkv(attention.norm(h)).view(tokens, -1, w.head_dim)
        qk = qkv[:, :qk_heads] if attention.qk_norm is None else attention.qk_norm(qkv[:, None, :qk_heads])[:, 0]
        real, imaginary = qk.to(rope.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = rope.unbind(-1)
        qk = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2).to(h.dtype)
        rows.index_copy_(0, positions, torch.cat([qk[:, w.heads :], qkv[:, qk_heads:]], 1))
        keys, values = split_keys_values(rows[None])  # [1, K, C, D]
        queries = qk[:, : w.heads].unflatten(1, (w.kv_heads, groups)).permute(1, 2, 0, 3).flatten(1, 2)[None]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=w.head_dim**-0.5)
        return attention.output(mixed[0].unflatten(1, (groups, tokens)).permute(2, 0, 1, 3).reshape(tokens, -1))


class OpaqueLinear:
    """A linear layer that the compiler calls without tracing it."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.id = next(_linear_ids)
        _linears[self.id] = linear
        _register_operator()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.pdevis.linear(x, self.id, self.linear.out_features)


@cache
def _register_operator() -> torch.library.Library:
    """Define pdevis::linear(x, id of the layer, its output size), once per process."""
    library = torch.library.Library("pdevis", "DEF")
    library.define("linear(Tensor x, int id, int size) -> Tensor")
    library.impl("linear", lambda x, id, size: _linears[id](x), "CompositeExplicitAutograd")
    torch.library.register_fake("pdevis::linear", lambda x, id, size: x.new_empty(len(x), size), lib=library)
    return library


def _with_opaque_linears(layer: Layer) -> Layer:
    def wrap(linear: Linear) -> Linear:
        if isinstance(linear, RotatedInputLinear):
            return RotatedInputLinear(linear.hadamard, wrap(linear.linear))
        return linear if isinstance(linear, DenseLinear) else OpaqueLinear(linear)

    attention, mlp = layer.attention, layer.mlp
    return Layer(
        replace(attention, qkv=wrap(attention.qkv), output=wrap(attention.output)),
        replace(mlp, gate_up=wrap(mlp.gate_up), down=wrap(mlp.down)),
    )
