"""A fixed rotation of the residual stream that makes 8-bit activations accurate at no cost per token.

A few coordinates of a trained model's residual stream are far larger than the rest, and a token's 8-bit scale has to
reach them. Rotating the stream spreads them evenly. An RMS norm without weights does not see a rotation, so with the
norms' weights moved into the matrices that follow, the rotation disappears into the weights: the model computes the
same function (QuaRot, Ashkboos et al. 2024). No calibration, no training; angles between hidden states do not change.

    python evaluation/formats/evaluate_formats.py        (what it is worth: agreement with float32, with and without)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Rotation:
    """x -> x Q for a fixed orthogonal Q [H, H], a Kronecker product of two small ones: cheap at any size."""

    def __init__(self, size: int, seed: int = 0) -> None:
        rows = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        generator = torch.Generator().manual_seed(seed)
        self.left, self.right = (_orthogonal(n, generator) for n in (rows, size // rows))

    def of_rows(self, x: Tensor) -> Tensor:
        """x [..., H] -> x Q, computed in float64."""
        wide = x.double().unflatten(-1, (len(self.left), len(self.right)))
        left, right = self.left.to(x.device), self.right.to(x.device)
        return (left.t() @ wide @ right).flatten(-2).to(x.dtype)

    def of_columns(self, weight: Tensor) -> Tensor:
        """weight [H, K] -> Q^T weight."""
        return self.of_rows(weight.t()).t()


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))  # the signs make it uniform over all rotations
