"""The hidden-state divergence check: cosine similarity of hidden states before and after layers.

Shapes: T = tokens, H = hidden size, L = layers, W = lanes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(new: Tensor, old: Tensor) -> Tensor:
    """Return cos(new, old) over the last dimension, [..., T, H] -> [..., T]. The divergence is 1 minus this."""
    return F.cosine_similarity(new.float(), old.float(), dim=-1)


def similarity_matrix(trace: list[Tensor]) -> list[list[float]]:
    """Return cos(h_i, h_j) for h_0 … h_L, each [T, H], averaged over the tokens, as an (L + 1) x (L + 1) table.

    One matrix product and one transfer to the host, whatever the number of layers.
    """
    states = F.normalize(torch.stack(trace).float(), dim=-1)  # [L + 1, T, H]
    flat = states.flatten(1)
    return (flat @ flat.t() / states.shape[1]).tolist()
