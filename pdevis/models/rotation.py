"""A fixed rotation of the residual stream that makes 8-bit activations accurate at no cost per token.

A few coordinates of a trained model's residual stream are far larger than the rest, and a token's 8-bit scale has to
reach them. Rotating the stream spreads them evenly. An RMS norm without weights does not see a rotation, so with the
norms' weights moved into the matrices that follow, the rotation disappears into the weights: the model computes the
same function (QuaRot, Ashkboos et al. 2024). No calibration, no training; angles between hidden states do not change.

The input of an MLP's last product has outliers of its own, and a nonlinearity in front of it: there a small Hadamard
matrix, applied block by block, stands in the forward (`BlockRotation`), for a few microseconds a layer.

    python evaluation/formats/evaluate_formats.py        (what it is worth: agreement with float32, with and without)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 4096  # at a time


class Rotation:
    """x -> x Q for a fixed orthogonal Q [H, H], a Kronecker product of two small ones: cheap at any size."""

    def __init__(self, size: int, seed: int = 0) -> None:
        rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        generator = torch.Generator().manual_seed(seed)
        self.left, self.right = (_orthogonal(n, generator) for n in (rows, size // rows))

    def of_rows(self, x: Tensor) -> Tensor:
        """x [..., H] -> x Q, computed in float64, a few rows at a time: float64 copies of a large matrix are larger."""
        left, right = self.left.to(x.device), self.right.to(x.device)
        rows, turned = (
            x.flatten(0, -2) if x.dim() > 1 else x[None],
            torch.empty_like(x, memory_format=torch.contiguous_format),
        )
        out = turned.view(rows.shape)
        for first in range(0, len(rows), ROWS):
            part = slice(first, first + ROWS)
            wide = rows[part].double().unflatten(-1, (len(left), len(right)))
            out[part] = (left.t() @ wide @ right).flatten(-2)
        return turned

    def of_columns(self, weight: Tensor) -> Tensor:
        """weight [H, K] -> Q^T weight."""
        return self.of_rows(weight.t()).t()


class BlockRotation:
    """x [T, K] -> each block of x's last dimension times one Hadamard matrix; symmetric and orthogonal.

    The blocks are as large as divide K, within bounds: a product of a dozen rows or more with so small a matrix gives
    each row the same bits whatever stands beside it, which holds for no product of any size.

    Args:
        parts: devices that may each turn a part of K, with the same bits still.
    """

    MOST = 64  # 128 takes 18 µs for 4864 numbers instead of 11, and is no more accurate
    LEAST_ROWS = 12  # blocks of one token

    def __init__(self, size: int, dtype: torch.dtype = torch.float32, parts: int = 1) -> None:
        self.block = min(size & -size, self.MOST)  # the largest power of two that divides size
        while self.block > 1 and size // self.block < parts * self.LEAST_ROWS:
            self.block //= 2
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < self.block:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        self.matrix = (matrix * self.block**-0.5).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, self.block) @ self.matrix).view(x.shape)


class TurnedLinear:
    """A linear layer whose input is turned first; its weight has been turned alike."""

    def __init__(self, turn: BlockRotation, linear: Callable[[Tensor], Tensor]) -> None:
        self.turn, self.linear = turn, linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(self.turn(x))


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))  # the signs make it uniform over all rotations
