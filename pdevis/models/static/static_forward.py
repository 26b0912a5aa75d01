"""StaticForward: forwards of a `DecoderStack` in which no shape depends on the length of the text.

A forward of T tokens runs as one of the next larger width: tokens after the T-th are padding, and so are their cache
entries. Positions are a tensor, and attention covers a block of the cache, a power of two long, under a mask. So a
forward can be captured as a graph. Layers run through the fused kernels on CUDA (fused_forward.py), or through
torch.compile, or as they are. torch.compile gets one layer at a time: layers of one shape share their code, so that
compiling takes seconds. Products of other libraries are opaque to it: one operator looks them up.

A target has a single width. Every forward after the prompt then uses the same kernels in the same shapes, whether it
verifies a draft or decodes plainly, so that a token has the same bits in both.

Shapes: T = tokens of a width, L = layers, W = layers of a wide layer, C = capacity of the cache, S = positions of the
block that attention covers, H = hidden size, N = query heads, K = key/value heads, G = N / K, D = head size.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.kv_cache import INITIAL_CAPACITY, split_keys_values
from pdevis.models.layers import MLP, Attention
from pdevis.models.linear import DenseLinear, Linear
from pdevis.models.rotation import RotatedInputLinear
from pdevis.models.stack import DecoderStack
from pdevis.models.static.fused_forward import make_fused_function, unsupported
from pdevis.models.static.graphs import Graph, make_graph
from pdevis.util.validation import DraftingWarning, first_line

TARGET_WIDTHS = (16,)  # one tile of a GPU's matrix units: drafts of up to 15 tokens
DRAFTER_WIDTHS = (1, 2, 6, 16)  # a draft step; the first one of a round, over the tokens confirmed since the last
CPU_WIDTHS = (1, 2, 6, 16)  # of both models: there each row costs time

BACKENDS = {"fused": "fused kernels", "compiled": "torch.compile", "eager": "plain kernels"}  # the best first

SPARE_WIDTHS = 2  # of the largest width, of space in the cache after a block, for padding and drafts
MAX_VERSIONS = 64  # compiled versions of a layer's code in one process

_linears: WeakValueDictionary[int, Linear] = WeakValueDictionary()
_linear_ids = itertools.count()

# ids [T], positions [T], indices [S] from 0, rotary table [C, D / 2, 2], cache [L, C, 2K, D] -> hidden states [T, H]
Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """A layer or a wide layer: an attention, or none, and then MLPs one after another."""

    attention: Attention | None
    mlps: tuple[MLP, ...]


def exact_blocks(stack: DecoderStack) -> tuple[Block, ...]:
    """Return the layers of a stack that holds all of them."""
    return tuple(Block(layer.attention, (layer.mlp,)) for layer in stack.layers)


@dataclass(frozen=True)
class HeadSizes:
    """N, K and D of a model."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass
class _CapturedForward:
    """A graph of one forward, and the buffers that it reads and writes."""

    ids: Tensor  # [T]
    positions: Tensor  # [T]
    hidden: Tensor  # [T, H]
    graph: Graph | None = None


class StaticForward:
    """Static-shape forwards of one stack, made at first use.

    Args:
        stack: on one device, with all layers.
        widths: numbers of tokens, increasing.
        backend: one of `BACKENDS`, by which layers run; layers that the fused kernels do not support are compiled.
    """

    def __init__(self, stack: DecoderStack, widths: Sequence[int], *, backend: str) -> None:
        self.stack = stack
        self.widths = tuple(widths)
        self.max_tokens = self.widths[-1]
        self.backend = backend
        self.loops: dict[int, Any] = {}  # `DraftLoop` by vocabulary (drafting/draft_loop.py)
        self._exact: tuple[Block, ...] | None = None
        self._functions: dict[tuple[int, int], tuple[tuple[Block, ...], Forward]] = {}
        self._captured: dict[tuple[int, int, int], _CapturedForward] = {}
        self._cache_version = -1  # that the graphs were captured with

    @property
    def exact(self) -> tuple[Block, ...]:
        """The stack's own layers."""
        if self._exact is None:
            self._exact = exact_blocks(self.stack)
        return self._exact

    def forget(self) -> None:
        """Drop everything that was made with the stack's own layers, which have been replaced."""
        self._exact = None
        self.loops.clear()
        self._functions.clear()
        self._captured.clear()

    def drop(self, blocks: tuple[Block, ...] | None) -> None:
        """Drop what was made with some blocks, so that their memory can be freed."""
        self.loops.clear()
        self._functions = {key: value for key, value in self._functions.items() if value[0] is not blocks}
        self._captured = {key: value for key, value in self._captured.items() if key[0] != id(blocks)}

    def run(self, ids: Tensor, start: int, blocks: tuple[Block, ...] | None = None) -> Tensor:
        """Compute hidden states [T, H] after the last layer for at most T ids at positions from `start`.

        Rows beyond the ids are padding. Writes the cache entries, which the caller commits. The next call overwrites
        the result.

        Args:
            ids: at most `max_tokens`.
            start: position of the first one.
            blocks: the layers; None: the exact ones.
        """
        width = next(width for width in self.widths if width >= len(ids))
        attended = self.reserve(start, len(ids))
        blocks = self.exact if blocks is None else blocks
        captured = self._captured_forward(blocks, start, width, attended)
        _load(captured, ids, start)
        captured.graph.replay()
        return captured.hidden

    def capture_widths(self, blocks: tuple[Block, ...], start: int) -> None:
        """Capture forwards of all widths at positions from `start` now, so that no later one waits for it."""
        for width in self.widths:
            self._captured_forward(blocks, start, width, self.reserve(start, width))

    def reserve(self, start: int, tokens: int) -> int:
        """Provide for forwards over some tokens, and return the length S of the block that the last one attends to.

        A token's block depends on its position alone, unless a forward crosses the end of a block (`room`).
        """
        attended = block_length(start + tokens, self.stack.context_length + self.max_tokens)
        self.stack.reserve(attended + SPARE_WIDTHS * self.max_tokens)  # the same for all forwards that attend to it
        if self._cache_version != self.stack.cache.version:  # it has grown
            self._captured.clear()
            self._cache_version = self.stack.cache.version
        return attended

    def room(self, start: int) -> int:
        """Return how many tokens from position `start` on fit into one forward and attend to the same block."""
        return min(block_length(start + 1, self.stack.context_length + self.max_tokens) - start, self.max_tokens)

    def function(self, blocks: tuple[Block, ...], width: int) -> Forward:
        """Return the function of forwards over T = `width` tokens."""
        key = (id(blocks), width)  # which the value keeps alive
        if key not in self._functions:
            if self.backend == "fused" and unsupported(self.stack.weights, blocks) is None:
                function = make_fused_function(self.stack.weights, blocks)
            else:
                function = make_function(self.stack, blocks, compiled=self.backend != "eager")
            self._functions[key] = (blocks, function)
        return self._functions[key][1]

    def inputs(self, attended: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last three arguments of a `Forward` that attends to a block of length S."""
        indices = torch.arange(attended, device=self.stack.device)
        return indices, self.stack.rope_table, self.stack.cache.storage

    def _captured_forward(self, blocks: tuple[Block, ...], start: int, width: int, attended: int) -> _CapturedForward:
        """Return the forward of some layers and a width over a block of the cache, captured at its first use."""
        key = (id(blocks), width, attended)
        if key not in self._captured:
            self._captured[key] = self._capture(blocks, start, width, attended)
        return self._captured[key]

    def _capture(self, blocks: tuple[Block, ...], start: int, width: int, attended: int) -> _CapturedForward:
        weights, device = self.stack.weights, self.stack.device
        captured = _CapturedForward(
            ids=torch.zeros(width, dtype=torch.long, device=device),
            positions=torch.zeros(width, dtype=torch.long, device=device),
            hidden=torch.zeros(width, weights.embedding.shape[1], dtype=weights.dtype, device=device),
        )
        inputs = self.inputs(attended)

        def make_work() -> Callable[[], None]:
            function = self.function(blocks, width)
            return lambda: captured.hidden.copy_(function(captured.ids, captured.positions, *inputs))

        captured.graph = self.record(make_work, lambda: _load(captured, captured.ids[:0], start))
        return captured

    def record(self, make_work: Callable[[], Callable[[], Any]], prepare: Callable[[], None]) -> Graph:
        """Return a graph of some work; if it fails, the next best backend is used from then on.

        Args:
            make_work: makes the work, with functions of `function`.
            prepare: as for `Graph.capture`.
        """
        while True:
            graph = make_graph(self.stack.device)
            try:
                graph.capture(make_work(), prepare)
            except Exception as error:
                failed, *others = list(BACKENDS)[list(BACKENDS).index(self.backend) :]
                if not others:
                    raise
                reason = f"{type(error).__name__}: {first_line(error)}"
                text = f"forwards through {BACKENDS[failed]} fail ({reason}): {BACKENDS[others[0]]} from now on"
                warnings.warn(text, DraftingWarning, stacklevel=2)
                self.backend = others[0]
                self._functions.clear()
            else:
                return graph


def block_length(tokens: int, limit: int) -> int:
    """Return the length of the block of the cache that the last one of some tokens attends to: a power of two."""
    return min(max(INITIAL_CAPACITY, 1 << (tokens - 1).bit_length()), limit)


def _load(captured: _CapturedForward, ids: Tensor, start: int) -> None:
    """Copy the tokens of a forward into its buffers; padding keeps the ids of an earlier one."""
    captured.ids[: len(ids)].copy_(ids)
    torch.arange(start, start + len(captured.positions), out=captured.positions)


def make_function(stack: DecoderStack, blocks: Sequence[Block], *, compiled: bool) -> Forward:
    """Return a function that writes the cache entries and returns the hidden states after the last block.

    Args:
        stack: for the embedding and sizes; its cache is not used.
        blocks: the layers.
        compiled: run each of them through torch.compile.
    """
    weights, run = stack.weights, _compiled_run_block() if compiled else run_block
    chosen = [_with_opaque_linears(block) for block in blocks] if compiled else blocks
    sizes = HeadSizes(weights.heads, weights.kv_heads, weights.head_dim)

    def forward(ids: Tensor, positions: Tensor, indices: Tensor, rope_table: Tensor, storage: Tensor) -> Tensor:
        rope = rope_table[positions][:, None, None]  # [T, 1, 1, D / 2, 2]
        hidden = indices > positions[:, None]  # [T, S]
        mask = torch.zeros(hidden.shape, dtype=weights.dtype, device=ids.device).masked_fill(hidden, -torch.inf)
        mask = mask.repeat(weights.heads // weights.kv_heads, 1)  # [G T, S]
        h = F.embedding(ids, weights.embedding)
        for block in chosen:
            rows = None
            if block.attention is not None:
                layers = block.attention.layers
                rows = storage[layers.start : layers.stop : layers.step]
                if compiled:  # one version for all lengths of cache and block
                    torch._dynamo.maybe_mark_dynamic(rows, 1)
                    torch._dynamo.maybe_mark_dynamic(mask, 1)
            h = run(block, h, rows, sizes=sizes, positions=positions, rope=rope, mask=mask)
        return h

    return forward


@cache
def _compiled_run_block() -> Callable[..., Tensor]:
    # layers of other shapes, widths and numbers of lanes are further versions of the same code
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_VERSIONS)
    return torch.compile(run_block, fullgraph=True, dynamic=False)


def run_block(
    block: Block,
    h: Tensor,
    rows: Tensor | None,
    *,
    sizes: HeadSizes,
    positions: Tensor,
    rope: Tensor,
    mask: Tensor,
) -> Tensor:
    """Run a block on h [T, H], with its layers' part of the cache, `rows` [W, C, 2K, D], which it writes."""
    if block.attention is not None:
        h = h + _attend(sizes, block.attention, rows, h, positions=positions, rope=rope, mask=mask)
    for mlp in block.mlps:
        h = h + mlp.down(mlp.inner(h))
    return h


def _attend(
    w: HeadSizes, attention: Attention, rows: Tensor, h: Tensor, *, positions: Tensor, rope: Tensor, mask: Tensor
) -> Tensor:
    """Compute an attention update [T, H] over the first S positions of its layers' cache, `rows` [W, C, 2K, D]."""
    tokens, lanes, groups = len(h), len(rows), w.heads // w.kv_heads
    qk_heads = w.heads + w.kv_heads
    qkv = attention.qkv(attention.norm(h)).view(tokens, lanes, -1, w.head_dim)
    qk = qkv[:, :, :qk_heads] if attention.qk_norm is None else attention.qk_norm(qkv[:, :, :qk_heads])
    real, imaginary = qk.to(rope.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    qk = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2).to(h.dtype)
    entries = torch.cat([qk[:, :, w.heads :], qkv[:, :, qk_heads:]], 2)  # [T, W, 2K, D]
    # A token that is not seen yet has weight 0, and 0 x NaN would be NaN.
    entries = entries.nan_to_num(0, 0, 0)
    rows.index_copy_(1, positions, entries.transpose(0, 1))  # of a view, the compiler would copy the whole cache
    keys, values = split_keys_values(rows[:, : mask.shape[1]])  # [W, K, S, D]
    queries = qk[:, :, : w.heads].unflatten(2, (w.kv_heads, groups)).permute(1, 2, 3, 0, 4).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=w.head_dim**-0.5)
    return attention.output(mixed.unflatten(2, (groups, tokens)).permute(3, 0, 1, 2, 4).reshape(tokens, -1))


# ---- products that the compiler cannot trace ----


class OpaqueLinear:
    """A linear layer that the compiler calls without tracing it."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        number = next(_linear_ids)
        _linears[number] = linear
        self.number = torch.tensor(number)  # as a number it would be part of the compiled code
        self.out_features = linear.out_features
        _register_operator()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.pdevis.linear(x, self.number, self.out_features)


@cache
def _register_operator() -> torch.library.Library:
    """Define pdevis::linear(x, number of the layer, its output size), once per process."""
    library = torch.library.Library("pdevis", "DEF")
    library.define("linear(Tensor x, Tensor number, int size) -> Tensor")
    library.impl("linear", lambda x, number, size: _linears[int(number)](x), "CompositeExplicitAutograd")
    torch.library.register_fake("pdevis::linear", lambda x, number, size: x.new_empty(len(x), size), lib=library)
    return library


def _with_opaque_linears(block: Block) -> Block:
    """Return a block whose products the compiler can trace or call."""
    attention = block.attention
    if attention is not None:
        attention = replace(attention, qkv=_opaque(attention.qkv), output=_opaque(attention.output))
    mlps = (replace(mlp, gate_up=_opaque(mlp.gate_up), down=_opaque(mlp.down)) for mlp in block.mlps)
    return Block(attention, tuple(mlps))


def _opaque(linear: Linear) -> Linear:
    """Wrap a product unless the compiler can trace it; rotations stay in view, around their product."""
    if isinstance(linear, RotatedInputLinear):
        return RotatedInputLinear(linear.hadamard, _opaque(linear.linear))
    return linear if isinstance(linear, DenseLinear) else OpaqueLinear(linear)
