"""Forwards in static shapes through the fused kernels (fused_kernels.py), for plain weights on CUDA.

Shapes: as in static_forward.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.layers import MLP, Attention, RMSNorm, StackWeights, UnitRMSNorm
from pdevis.models.linear import DenseLinear, Linear

MAX_TOKENS = 16  # rows of a matrix unit's tile
DTYPES = (torch.bfloat16, torch.float16)
BLOCK_OUT, BLOCK_IN = 64, 256  # of a product: the best of 16 to 128 and 64 to 256 for all sizes, measured on an H200
MAX_STAGES, MAX_STAGES_OF_PARTS = 5, 3  # blocks in flight: of whole sums; of parts of sums, and with a gate
FEWEST_BLOCKS = 2  # of a part of a sum
MAX_PROGRAMS = 1 << 10  # that share sums: fewer than a device has multiprocessors
PART_LENGTH = 512  # positions that one program attends to, in longer blocks of the cache
MAX_UNDIVIDED = 1024  # positions of a block that is not divided
ATTENTION_TILE = 1 << 13  # elements of keys that are read at once
CHOICE_BLOCK = 2048  # logits of one program


def unsupported(weights: StackWeights, blocks: Sequence[Any]) -> str | None:
    """Return why the kernels cannot run some layers (`Block`), or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if weights.dtype not in DTYPES:
        return f"they do not compute in {weights.dtype}".replace("torch.", "")
    size = weights.head_dim
    if size & (size - 1) or size < MAX_TOKENS:
        return f"head size {size} is not a power of two of at least {MAX_TOKENS}"
    linears: list[Linear] = []
    for block in blocks:
        if block.attention is not None:
            linears += [block.attention.qkv, block.attention.output]
        for mlp in block.mlps:
            linears += [mlp.gate_up, mlp.down]
            if mlp.hadamard is not None:
                return "states of MLPs are rotated"
    other = next((linear for linear in linears if not isinstance(linear, DenseLinear)), None)
    return None if other is None else f"weights are in a format of their own ({type(other).__name__})"


def make_fused_function(weights: StackWeights, blocks: Sequence[Any]) -> Callable[..., Tensor]:
    """Return a `Forward` (static_forward.py) of some layers for at most `MAX_TOKENS` tokens."""

    def forward(ids: Tensor, positions: Tensor, indices: Tensor, rope_table: Tensor, storage: Tensor) -> Tensor:
        h = F.embedding(ids, weights.embedding)
        for block in blocks:
            if block.attention is not None:
                h = _attend(weights, block.attention, h, positions, len(indices), rope_table, storage)
            for mlp in block.mlps:
                state = product(h, mlp.gate_up, norm=mlp.norm, lane_size=_lane_size(mlp))
                h = product(state, mlp.down, residual=h)
        return h

    return forward


def _lane_size(mlp: MLP) -> int:
    return len(mlp.gate_up.weight) // (2 * mlp.lanes)


def product(
    x: Tensor,
    linear: DenseLinear,
    *,
    norm: RMSNorm | UnitRMSNorm | None = None,
    residual: Tensor | None = None,
    lane_size: int | None = None,
) -> Tensor:
    """Compute linear(norm(x)) + residual in one kernel.

    Args:
        x: [T, K], T <= MAX_TOKENS.
        linear: of weight [N, K].
        norm: of x.
        residual: [T, N].
        lane_size: N is W lanes of 2 I rows, gate and up, and the result is silu(gate) * up, [T, W I]. Such sums are not
            divided, which is never faster.
    """
    from pdevis.models.static.fused_kernels import product_kernel  # imports triton, which CPU machines may lack

    weight, bias = linear.weight, linear.bias
    assert weight.stride(1) == 1
    tokens, size_in = x.shape
    size_out = len(weight) if lane_size is None else len(weight) // 2
    gated = lane_size is not None
    out = x.new_empty(tokens, size_out)
    programs = -(-size_out // BLOCK_OUT)
    split_length, splits = _split(size_in, 1 if gated else _device_limits(x.device)[0] // programs)
    parts, squares = out, out
    if splits > 1:
        parts = x.new_empty(splits, tokens, size_out, dtype=torch.float32)
        squares = x.new_empty(programs, splits, MAX_TOKENS, dtype=torch.float32)
    scale, eps, norm_weight = _norm_numbers(norm, size_in)
    stage_bytes = (BLOCK_OUT * (1 + gated) + MAX_TOKENS) * BLOCK_IN * weight.element_size()
    most_stages = MAX_STAGES if splits == 1 and not gated else MAX_STAGES_OF_PARTS
    product_kernel[(programs, splits)](
        *(x, weight, *(weight if other is None else other for other in (norm_weight, bias, residual)), out),
        *(parts, squares, _arrived(x.device)),
        *(tokens, size_in, size_out, weight.stride(0), split_length, lane_size if gated else size_out, scale, eps),
        NORM=norm is not None,
        WEIGHTED=norm_weight is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated,
        BLOCK_OUT=BLOCK_OUT,
        BLOCK_IN=BLOCK_IN,
        EVEN=size_in % BLOCK_IN == 0,
        SPLITS=splits,
        num_warps=4,
        num_stages=max(min(most_stages, _device_limits(x.device)[1] // stage_bytes), 2),
    )
    return out


def _split(size_in: int, most: int) -> tuple[int, int]:
    """Divide a sum among at most so many programs; returns the columns of each part and the number of parts."""
    blocks = -(-size_in // BLOCK_IN)
    part = -(-blocks // max(min(most, blocks // FEWEST_BLOCKS), 1))
    return part * BLOCK_IN, -(-blocks // part)


@cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    """Return a device's number of multiprocessors and the bytes of shared memory that a program may use."""
    if device.type != "cuda":
        return 8, 1 << 17
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.shared_memory_per_block_optin


@cache
def _arrived(device: torch.device) -> Tensor:
    """Return counters of programs that share a sum, which are 0 between kernels: kernels of a device run in turn."""
    return torch.zeros(MAX_PROGRAMS, dtype=torch.int32, device=device)


def _norm_numbers(norm: RMSNorm | UnitRMSNorm | None, size: int) -> tuple[float, float, Tensor | None]:
    """Return scale, eps and weights of a norm with the factor rsqrt(scale * (sum of squares) + eps)."""
    if norm is None:
        return 1.0, 0.0, None
    if isinstance(norm, RMSNorm):
        return 1 / size, norm.eps, norm.weight
    return 1.0, norm.eps * size, None


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()


def _attend(
    weights: StackWeights,
    attention: Attention,
    h: Tensor,
    positions: Tensor,
    attended: int,
    rope_table: Tensor,
    storage: Tensor,
) -> Tensor:
    """Return h [T, H] plus an attention's update; writes the cache."""
    from pdevis.models.static.fused_kernels import attention_kernel, join_kernel

    layers, tokens = attention.layers, len(h)
    lanes, heads, size = len(layers), weights.heads, weights.head_dim
    cache = storage[layers.start : layers.stop : layers.step]
    qkv = product(h, attention.qkv, norm=attention.norm)
    out = h.new_empty(tokens, lanes * heads * size)
    parts = 1 if attended <= MAX_UNDIVIDED else -(-attended // PART_LENGTH)
    shape = (parts, tokens, lanes, heads)
    partial = h.new_empty(*shape, size, dtype=torch.float32) if parts > 1 else out
    peak, weight = (h.new_empty(shape, dtype=torch.float32) for _ in range(2)) if parts > 1 else (out, out)
    norm = attention.qk_norm
    attention_kernel[(lanes * weights.kv_heads, parts)](
        qkv,
        cache,
        rope_table,
        positions,
        qkv if norm is None else norm.weight,
        partial,
        peak,
        weight,
        tokens,
        lanes,
        cache.stride(0),
        attended if parts == 1 else PART_LENGTH,
        size**-0.5,
        0.0 if norm is None else norm.eps,
        HEADS=heads,
        KV_HEADS=weights.kv_heads,
        HEAD=size,
        ROWS=max(_power_of_two(tokens * (heads // weights.kv_heads)), MAX_TOKENS),
        BLOCK=max(min(ATTENTION_TILE // size, 128), MAX_TOKENS),
        NORM=norm is not None,
        PARTS=parts > 1,
        num_warps=4,
        num_stages=2,
    )
    if parts > 1:
        rows = tokens * lanes * heads
        join_kernel[(rows,)](partial, peak, weight, out, parts, rows, HEAD=size, MAX_PARTS=_power_of_two(parts))
    return product(out, attention.output, residual=h)


class FusedChoice:
    """The greedy choice of a draft step in three kernels: final norm and output head, and the best of its logits.

    Args:
        weights: of the model.
        vocab: ids from here on are never chosen.
        token, position, slot: [1] int64, set to the choice, and increased by one.
        found: [2, slots] float64: receives ids and log-probabilities.
    """

    def __init__(
        self, weights: StackWeights, vocab: int, *, token: Tensor, position: Tensor, slot: Tensor, found: Tensor
    ) -> None:
        self._weights, self._vocab, self._found = weights, vocab, found
        self._state = (token, position, slot)
        self._blocks = -(-vocab // CHOICE_BLOCK)
        device = weights.device
        self._best = torch.zeros(self._blocks, dtype=torch.long, device=device)
        self._peak, self._weight = (torch.zeros(self._blocks, device=device) for _ in range(2))

    def __call__(self, hidden: Tensor) -> None:
        """Choose the token after the hidden state [1, H]."""
        from pdevis.models.static.fused_kernels import best_kernel, best_of_block_kernel

        logits = product(hidden, self._weights.head, norm=self._weights.final_norm)
        parts = self._best, self._peak, self._weight
        best_of_block_kernel[(self._blocks,)](logits, *parts, self._vocab, BLOCK=CHOICE_BLOCK)
        token, position, slot = self._state
        best_kernel[(1,)](
            *parts,
            self._found,
            token,
            position,
            slot,
            self._blocks,
            self._found.shape[1],
            BLOCKS=_power_of_two(self._blocks),
        )
