"""A fixed rotation of the residual stream that makes 8-bit activations accurate at no cost per token.

A few coordinates of a trained model's residual stream are far larger than the rest, and a token's 8-bit scale has to
cover them. A rotation of the stream spreads them evenly. An RMS norm without weights commutes with a rotation, so once
the norms' weights are folded into the matrices that follow, the rotation is folded into the weights too: the model
computes the same function (QuaRot, Ashkboos et al. 2024). No calibration, no training; angles between hidden states do
not change.

The input of an MLP's last product has outliers of its own and follows a nonlinearity, so no fold is possible there: the
forward multiplies it by a small Hadamard matrix, block by block (`BlockHadamard`), in a few microseconds per layer.

Measure the gain (agreement with float32, with and without the rotation):

    python evaluation/formats/evaluate_formats.py

Shapes: H = hidden size, K = size of an inner state, T = tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_ROWS = 4096  # rows that are converted to float64 at a time


class Rotation:
    """A fixed orthogonal matrix Q [H, H], the Kronecker product of two small ones: cheap at any size."""

    def __init__(self, size: int, seed: int = 0) -> None:
        rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        generator = torch.Generator().manual_seed(seed)
        self.left, self.right = (_random_orthogonal(n, generator) for n in (rows, size // rows))

    def rotate_rows(self, x: Tensor) -> Tensor:
        """Return x Q for x [..., H]. Computed in float64, in chunks: float64 doubles the size of a large matrix."""
        left, right = self.left.to(x.device), self.right.to(x.device)
        rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
        rotated = torch.empty_like(x, memory_format=torch.contiguous_format)
        out = rotated.view(rows.shape)
        for first in range(0, len(rows), CHUNK_ROWS):
            chunk = slice(first, first + CHUNK_ROWS)
            wide = rows[chunk].double().unflatten(-1, (len(left), len(right)))
            out[chunk] = (left.t() @ wide @ right).flatten(-2)
        return rotated

    def rotate_columns(self, weight: Tensor) -> Tensor:
        """Return Q^T weight for a weight [H, K]."""
        return self.rotate_rows(weight.t()).t()


class BlockHadamard:
    """Multiplication of each block of a state's last dimension by one Hadamard matrix; symmetric and orthogonal.

    The block size is the largest power of two that divides K, within bounds. A product of at least a dozen rows with
    so small a matrix gives each row the same bits whatever the other rows are, which holds for no product in general.

    Args:
        size: K.
        dtype: of the state.
        parts: number of devices that may each process a part of K; the bits stay the same.
    """

    MAX_BLOCK = 64  # 128 takes 18 µs for 4864 numbers instead of 11, and is no more accurate
    MIN_BLOCKS = 12  # of one token, on each device

    def __init__(self, size: int, dtype: torch.dtype = torch.float32, parts: int = 1) -> None:
        self.block = min(size & -size, self.MAX_BLOCK)  # the largest power of two that divides size
        while self.block > 1 and size // self.block < parts * self.MIN_BLOCKS:
            self.block //= 2
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < self.block:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        self.matrix = (matrix * self.block**-0.5).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, self.block) @ self.matrix).view(x.shape)


class RotatedInputLinear:
    """A linear layer whose input is rotated first, and whose weight was rotated accordingly."""

    def __init__(self, hadamard: BlockHadamard, linear: Callable[[Tensor], Tensor]) -> None:
        self.hadamard = hadamard
        self.linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(self.hadamard(x))


def _random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))  # the signs make the distribution uniform over all rotations
