"""Distributions against transformers' own warpers; acceptance against the exact law of speculative sampling."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pdevis.config import DecodeConfig
from pdevis.decoding.sampling import Sampler, distribution, residual
from pdevis.decoding.verifier import accept_greedy, accept_sampled
from pdevis.generation import Draft

CPU = torch.device("cpu")


def logits(seed: int = 0, rows: int = 4, vocab: int = 50) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_distribution_equals_transformers_warpers(temperature, top_k, top_p):
    wanted = TemperatureLogitsWarper(temperature)(None, logits())
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    config = DecodeConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(distribution(logits(), config), wanted.softmax(-1), rtol=1e-5, atol=1e-6)


def test_tiny_temperature_is_argmax_without_overflow():
    probs = distribution(logits() * 1e4, DecodeConfig(temperature=1e-6))
    assert torch.equal(probs.argmax(-1), logits().argmax(-1))
    torch.testing.assert_close(probs.sum(-1), torch.ones(4))


def test_residual():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.2, 0.6, 0.1, 0.1])
    torch.testing.assert_close(residual(p, q), torch.tensor([0.75, 0.0, 0.25, 0.0]))
    assert torch.equal(residual(p, p), p)


def test_greedy_acceptance_uses_neither_probabilities_nor_random_numbers():
    best = torch.tensor([3, 1, 4, 1])
    rows = torch.nn.functional.one_hot(best, 6).float()
    before = torch.random.get_rng_state()
    for ids, accepted, bonus in [([3, 1, 4], 3, 1), ([3, 1, 5], 2, 4), ([0, 1, 4], 0, 3), ([3, 0, 4], 1, 1)]:
        verdict = accept_greedy(torch.tensor(ids, dtype=torch.long), rows)
        assert (verdict.accepted, verdict.bonus) == (accepted, bonus)
    assert torch.equal(before, torch.random.get_rng_state())


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> tuple[float, float]:
    """Return chi-square over cells expected >= 5 times, and its 99.9 % bound (Wilson and Hilferty 1931)."""
    expected = probs.flatten() * counts.sum()
    seen, rare = counts.flatten().double(), expected < 5
    cells = torch.cat([expected[~rare], expected[rare].sum()[None]])
    found = torch.cat([seen[~rare], seen[rare].sum()[None]])
    cells, found = cells[cells > 0], found[cells > 0]
    free = len(cells) - 1
    return float(((found - cells) ** 2 / cells).sum()), free * (
        1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5
    ) ** 3


@pytest.mark.parametrize("case", ["usual", "p without q", "q without p", "same", "larger vocabulary"])
def test_one_accepted_or_corrected_token_follows_p(case):
    p, q = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    p, q = {
        "usual": (p, q),
        "p without q": (p, torch.tensor([0.0, 0.5, 0.5, 0.0])),
        "q without p": (torch.tensor([0.0, 0.5, 0.5, 0.0]), q),
        "same": (p, p),
        "larger vocabulary": (p, torch.tensor([0.5, 0.5])),
    }[case]
    draws = Sampler(DecodeConfig(temperature=1.0, seed=3), CPU)
    target_sampler = Sampler(DecodeConfig(temperature=1.0, seed=3), CPU, stream=1)
    counts = torch.zeros(4)
    for _ in range(8000):
        draft = Draft([int(draws.draw(q))], q[None])
        verdict = accept_sampled(draft, torch.stack([p, p]), target_sampler)
        counts[draft.ids[0] if verdict.accepted else verdict.bonus] += 1
    found, bound = chi_square(counts, p)
    assert found <= bound


def test_the_chi_square_test_can_fail():
    counts = torch.tensor([2500.0, 2500.0, 2500.0, 2500.0])
    found, bound = chi_square(counts, torch.tensor([0.27, 0.25, 0.24, 0.24]))
    assert found > bound


def test_seeds():
    config = DecodeConfig(temperature=1.0, seed=5)
    same = [Sampler(config, CPU).uniform(4) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], Sampler(config, CPU, stream=1).uniform(4)), "both models would draw alike"
    fresh = DecodeConfig(temperature=1.0)
    assert not torch.equal(Sampler(fresh, CPU).uniform(4), Sampler(fresh, CPU).uniform(4))
