"""Whole forwards of a `DecoderStack` through torch.compile, in static shapes.

A forward of T tokens runs as one of the next width in `WIDTHS`: the tokens behind are scratch, in the cache too. The
position is a tensor and attention looks at the whole cache under a mask, so that nothing depends on the length; one
compilation per width and cache capacity, at first use. On CUDA mode="reduce-overhead" turns each into a CUDA graph (not
run on a GPU yet). Products in formats of other libraries are opaque to the compiler: one operator that looks them up.

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

from pdevis.models.layers import Attention, Layer
from pdevis.models.linear import DenseLinear, Linear
from pdevis.models.rotation import TurnedLinear
from pdevis.models.stack import DecoderStack

WIDTHS = (1, 2, 6, 17)  # draft steps; verification of up to 5, of up to 16 draft tokens

_linears: WeakValueDictionary[int, Linear] = WeakValueDictionary()
_numbers = itertools.count()


def compile_stack(stack: DecoderStack) -> None:
    """Have the stack's forwards compiled from now on, those of up to the largest width. Compiles nothing yet."""
    stack.whole = CompiledForward(stack)


class CompiledForward:
    """The compiled form of `DecoderStack.run_layers`."""

    most = WIDTHS[-1]

    def __init__(self, stack: DecoderStack) -> None:
        self.stack = stack
        self.layers = [_opaque(layer) for layer in stack.layers]
        mode = "reduce-overhead" if stack.device.type == "cuda" else None
        # Each width is a function of its own, so that the compiler's limit of recompilations is never met.
        self.functions: dict[int, Callable[..., Tensor]] = {
            width: torch.compile(self._function(), dynamic=False, fullgraph=True, mode=mode) for width in WIDTHS
        }

    def run(self, ids: Tensor, start: int) -> Tensor:
        """Hidden states [T', H] after the last layer of ids [T'] at positions from `start` on."""
        width = next(width for width in WIDTHS if width >= len(ids))
        self.stack.reserve(start + width)
        padded = F.pad(ids, (0, width - len(ids)))
        position = torch.tensor(start, device=ids.device)
        h = self.functions[width](padded, position, self.stack.turns, self.stack.cache)
        return h[: len(ids)].clone()  # a CUDA graph writes its next result to the same place

    def _function(self) -> Callable[..., Tensor]:
        weights, layers = self.stack.weights, self.layers

        def forward(ids: Tensor, start: Tensor, turns: Tensor, caches: list[Tensor]) -> Tensor:
            places = start + torch.arange(len(ids), device=ids.device)  # [T]
            turn = turns[places][:, None]  # [T, 1, D / 2, 2]
            seen = torch.arange(len(turns), device=ids.device) <= places[:, None]  # [T, C]
            mask = seen.repeat(weights.heads // weights.kv_heads, 1)  # [G T, C]
            h = F.embedding(ids, weights.embedding)
            for parts, rows in zip(layers, caches, strict=True):
                h = h + self._attention(parts.attention, rows, h, places, turn, mask)
                h = h + parts.mlp.down(parts.mlp.inner(h))
            return h

        return forward

    def _attention(
        self, parts: Attention, rows: Tensor, h: Tensor, places: Tensor, turn: Tensor, mask: Tensor
    ) -> Tensor:
        """As `DecoderStack.attention`, on the whole cache `rows` [C, 2K, D]."""
        w, tokens = self.stack.weights, len(h)
        groups, turned = w.heads // w.kv_heads, w.heads + w.kv_heads
        qkv = parts.qkv(parts.norm(h)).view(tokens, -1, w.head_dim)
        qk = qkv[:, :turned] if parts.qk_norm is None else parts.qk_norm(qkv[:, :turned])
        real, imaginary = qk.to(turn.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = turn.unbind(-1)
        qk = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2).to(h.dtype)
        rows.index_copy_(0, places, torch.cat([qk[:, w.heads :], qkv[:, turned:]], 1))
        keys, values = (half.transpose(0, 1)[None] for half in rows.chunk(2, dim=1))  # [1, K, C, D]
        queries = qk[:, : w.heads].unflatten(1, (w.kv_heads, groups)).permute(1, 2, 0, 3).flatten(1, 2)[None]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=w.head_dim**-0.5)
        return parts.output(mixed[0].unflatten(1, (groups, tokens)).permute(2, 0, 1, 3).reshape(tokens, -1))


class OpaqueLinear:
    """A linear layer that the compiler calls without looking inside."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.number = next(_numbers)
        _linears[self.number] = linear
        _register()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.pdevis.linear(x, self.number, self.linear.out_features)


@cache
def _register() -> torch.library.Library:
    """Define pdevis::linear(x, number of the layer, its output size), once per process."""
    library = torch.library.Library("pdevis", "DEF")
    library.define("linear(Tensor x, int number, int size) -> Tensor")
    library.impl("linear", lambda x, number, size: _linears[number](x), "CompositeExplicitAutograd")
    torch.library.register_fake("pdevis::linear", lambda x, number, size: x.new_empty(len(x), size), lib=library)
    return library


def _opaque(layer: Layer) -> Layer:
    def wrap(linear: Linear) -> Linear:
        if isinstance(linear, TurnedLinear):
            return TurnedLinear(linear.turn, wrap(linear.linear))
        return linear if isinstance(linear, DenseLinear) else OpaqueLinear(linear)

    attention, mlp = layer.attention, layer.mlp
    return Layer(
        replace(attention, qkv=wrap(attention.qkv), output=wrap(attention.output)),
        replace(mlp, gate_up=wrap(mlp.gate_up), down=wrap(mlp.down)),
    )
