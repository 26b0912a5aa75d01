"""The parts of a `DecoderStack`: norms, rotary embedding, attention, MLP, and the weights of a whole model.

Shapes: T = tokens, H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary,
C = positions in the rotary table, W = lanes of a wide layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.linear import Linear
from pdevis.models.rotation import BlockHadamard


class RMSNorm:
    """RMS norm over the last dimension. On CPU `F.rms_norm` runs as six kernels; this form needs four.

    Args:
        weight: [..., size].
        eps: added to the mean square.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self.weight = weight
        self.eps = eps
        self.uses_vector_norm = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        if self.uses_vector_norm:  # x / sqrt(mean x^2 + eps) = x sqrt(size) / sqrt(|x|^2 + eps size)
            self._scaled_weight = weight * size**0.5
            self._sqrt_eps = torch.tensor((eps * size) ** 0.5, dtype=weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if self.uses_vector_norm:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self._sqrt_eps)
            return x.div(norm).mul_(self._scaled_weight)
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class UnitRMSNorm:
    """x / sqrt(|x|^2 + eps size): an RMS norm whose weight and factor sqrt(size) are folded into the next matrix."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device | None = None) -> None:
        self.size, self.eps = size, eps
        self.sqrt_eps = torch.tensor(
            (eps * size) ** 0.5, dtype=torch.promote_types(dtype, torch.float32), device=device
        )

    def __call__(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.sqrt_eps.dtype).hypot(self.sqrt_eps)
        return (x / norm).to(x.dtype)


class RotaryEmbedding:
    """Table of the rotary factors of each position, as complex numbers [C, D / 2].

    Args:
        frequencies: [D / 2], float32.
        scale: attention scaling of the rope type (yarn), else 1.
        dtype: of the model. Factors are complex64, complex128 for float64.
    """

    def __init__(self, frequencies: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.frequencies = frequencies
        self.scale = scale
        self._real_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.table = torch.empty(0, len(frequencies), dtype=complex_dtype, device=frequencies.device)

    @torch.inference_mode(False)  # so that the table may be used inside and outside inference mode
    def reserve(self, positions: int) -> None:
        """Compute the factors of positions 0 to `positions` - 1."""
        if positions <= len(self.table):
            return
        angles = torch.arange(positions, device=self.frequencies.device)[:, None] * self.frequencies  # float32
        magnitude = torch.full_like(angles, self.scale, dtype=self._real_dtype)
        self.table = torch.polar(magnitude, angles.to(self._real_dtype))


def apply_rotary(qkv: Tensor, rope: Tensor) -> Tensor:
    """Apply the rotary embedding to qkv [T, W, N + 2K, D], whose D holds the pairs of a rotation next to each other.

    Args:
        qkv: queries, keys and values. float32 and float64 are changed in place.
        rope: factors [T, 1, N + 2K, D / 2], complex; 1 for values.
    """
    if qkv.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(qkv.view(*qkv.shape[:-1], -1, 2)).mul_(rope)
        return qkv
    rotated = torch.view_as_complex(qkv.float().view(*qkv.shape[:-1], -1, 2)) * rope
    return torch.view_as_real(rotated).view_as(qkv).to(qkv.dtype)


@dataclass(frozen=True)
class Attention:
    """Weights of an attention sublayer: of one layer, or of W consecutive layers with the same input."""

    norm: RMSNorm | UnitRMSNorm
    qkv: Linear  # [T, H] -> [T, W (N + 2K) D]
    qk_norm: RMSNorm | None  # over D, weight [W, N + K, D]
    output: Linear  # [T, W N D] -> [T, H]
    layers: range  # whose cache entries it writes


@dataclass(frozen=True)
class MLP:
    """Weights of an MLP sublayer, of one layer or of W layers with the same input.

    These are all rows of its matrices, or the rows that this device holds.
    """

    norm: RMSNorm | UnitRMSNorm
    gate_up: Linear  # [T, H] -> [T, W 2I]
    hadamard: BlockHadamard | None  # rotates the inner state
    down: Linear  # [T, W I] -> [T, H]
    lanes: int = 1  # W

    def inner(self, h: Tensor) -> Tensor:
        """Compute the input [T, W I] of `down` from h [T, H], or the columns of it that this device holds."""
        return self.activate(self.gate_up(self.norm(h)))

    def activate(self, gate_up: Tensor) -> Tensor:
        """Compute the input [T, W I] of `down` from the output [T, W 2I] of `gate_up`."""
        gate, up = gate_up.view(len(gate_up), self.lanes, 2, -1).unbind(2)
        state = F.silu(gate).mul_(up).view(len(gate_up), -1)
        return state if self.hadamard is None else self.hadamard(state)


@dataclass(frozen=True)
class Layer:
    """One decoder layer. A sublayer that another device holds is None."""

    attention: Attention | None
    mlp: MLP | None


@dataclass(frozen=True)
class ShardSpec:
    """The part of a model that one of `size` devices holds: every `size`-th layer and a block of the output head.

    Args:
        rank: index of this device.
        size: number of devices; 1: the whole model.
        split_mlps: hold some rows of every MLP instead of whole MLPs, so that all devices work on each of them.
    """

    rank: int = 0
    size: int = 1
    split_mlps: bool = False

    def holds(self, layer: int) -> bool:
        """Return True if a layer's attention is on this device, and its MLP if MLPs are not split."""
        return layer % self.size == self.rank

    def rows(self, count: int, block: int = 1) -> range:
        """Return this device's rows of a matrix of `count` rows: whole blocks, evenly divided up to one block."""
        blocks = count // block
        return range(self.rank * blocks // self.size * block, (self.rank + 1) * blocks // self.size * block)

    def mlp_rows(self, count: int, block: int = 1) -> range:
        """Return this device's rows of an MLP matrix of `count` rows: all of them if MLPs are not split."""
        return self.rows(count, block) if self.split_mlps else range(count)


WHOLE = ShardSpec()


@dataclass(frozen=True)
class StackWeights:
    """Weights and dimensions of a `DecoderStack`. Several stacks may use the same object, each with its own cache."""

    family: str
    precision: str
    device: torch.device
    dtype: torch.dtype
    layers: list[Layer]
    embedding: Tensor  # [V, H]
    final_norm: RMSNorm | UnitRMSNorm
    head: Linear  # [T, H] -> [T, V], or the rows that this device holds
    head_start: int  # id of the head's first row
    frequencies: Tensor  # [D / 2] of the rotary embedding, float32
    rope_scale: float
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    mlp_block: int  # MLP rows are divided among devices in blocks of this many
    vocab_size: int
    context_length: int
