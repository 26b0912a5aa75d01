"""Sampling: the distribution that decoding settings define, draws from it, and the residual distribution.

Speculative sampling is lossless for whatever p and q are, as long as p is what the target alone would have sampled
from and q is what the drafter really sampled from (Leviathan et al. 2023, Chen et al. 2023): both come through here.

Shapes: T = positions, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdevis.config import DecodeConfig


def distribution(logits: Tensor, config: DecodeConfig) -> Tensor:
    """Turn logits [T, V] into float32 probabilities [T, V]: temperature (> 0), then top-k, top-p and min-p."""
    assert not config.greedy, "temperature 0 has its own argmax path"
    logits = logits.float()
    scaled = (logits - logits.amax(-1, keepdim=True)) / config.temperature
    if 0 < config.top_k < scaled.shape[-1]:
        kth = scaled.topk(config.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probs = scaled.softmax(-1)
    if config.top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of more probable tokens: the first token always stays
        ordered = ordered.masked_fill(before >= config.top_p, 0)
        probs = torch.zeros_like(probs).scatter_(-1, order, ordered)
        probs = probs / probs.sum(-1, keepdim=True)
    if config.min_p > 0:
        probs = probs.masked_fill(probs < config.min_p * probs.amax(-1, keepdim=True), 0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def process(config: DecodeConfig, ids: list[int], logits: Tensor) -> Tensor:
    """Apply the processors of the settings to logits [T, V]: row i follows the first `len(ids) - T + 1 + i` ids.

    A processor may change its arguments, but nothing else.
    """
    if not config.processors:
        return logits
    before = torch.tensor([ids], device=logits.device)
    first = len(ids) - len(logits) + 1
    rows = []
    for i in range(len(logits)):
        row = logits[i : i + 1].to(torch.float32, copy=True)
        for processor in config.processors:
            row = processor(before[:, : first + i].clone(), row)
        rows.append(row)
    return torch.cat(rows)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return norm(max(0, p - q)) over [V], from which the replacement of a rejected draft token is sampled."""
    rest = (p - q).clamp_min(0)
    mass = rest.sum()
    return rest / mass if mass > 0 else p  # mass 0: p equals q up to rounding


class Sampler:
    """Random numbers of one generation on one device; nothing is seeded globally."""

    def __init__(self, config: DecodeConfig, device: torch.device, stream: int = 0) -> None:
        self.config = config
        self.device = device
        self.generator: torch.Generator | None = None
        if not config.greedy:
            self.generator = torch.Generator(device)
            if config.seed is None:
                self.generator.seed()
            else:  # target and drafter use different streams of one seed
                self.generator.manual_seed(2 * config.seed + stream)

    def draw(self, probs: Tensor) -> Tensor:
        """Sample one token [1] from probabilities [V]."""
        return torch.multinomial(probs, 1, generator=self.generator)

    def uniform(self, count: int) -> Tensor:
        """Return uniform random numbers [count] in [0, 1)."""
        return torch.rand(count, generator=self.generator, device=self.device)
