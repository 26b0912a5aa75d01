"""What a `DecoderStack` is made of: the parts of each layer, and the whole.

Shapes: T = tokens, H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.linear import Linear
from pdevis.models.norm import Norm, UnitNorm
from pdevis.models.rotation import BlockRotation


@dataclass(frozen=True)
class Attention:
    norm: Norm | UnitNorm
    qkv: Linear  # [T, H] -> [T, (N + 2K) D]
    qk_norm: Norm | None  # over D, weight [N + K, D]
    output: Linear  # [T, N D] -> [T, H]


@dataclass(frozen=True)
class MLP:
    """All rows of its matrices, or this device's part of the rows of each."""

    norm: Norm | UnitNorm
    gate_up: Linear  # [T, H] -> [T, 2I]
    turn: BlockRotation | None  # of the inner state
    down: Linear  # [T, I] -> [T, H]

    def inner(self, h: Tensor) -> Tensor:
        """h [T, H] -> what the last product takes [T, I], or this device's part of it."""
        gate, up = self.gate_up(self.norm(h)).chunk(2, dim=-1)
        state = F.silu(gate).mul_(up)
        return state if self.turn is None else self.turn(state)


@dataclass(frozen=True)
class Layer:
    """One decoder layer; None for what other devices hold."""

    attention: Attention | None
    mlp: MLP | None


@dataclass(frozen=True)
class StackWeights:
    """All a `DecoderStack` needs of a model; several stacks may share it, each with its own cache."""

    family: str
    precision: str
    device: torch.device
    dtype: torch.dtype
    layers: list[Layer]
    embedding: Tensor  # [V, H]
    final_norm: Norm | UnitNorm
    head: Linear  # [T, H] -> [T, V], or this device's part of it
    head_start: int  # the id that its first row stands for
    frequencies: Tensor  # [D / 2] of the rotary embedding, float32
    rope_scale: float
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    mlp_block: int  # a part of an MLP's rows is whole blocks of so many
    vocab_size: int
    context_length: int
