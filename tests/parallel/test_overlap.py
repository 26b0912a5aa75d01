"""Draft-ahead: the text is still the target's own, right guesses are used, and the statistics count them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from helpers.processes import GREEDY, PROMPT, VOCAB, decode, device_slots, remote_drafter, spec_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.gamma import AutoGamma, RoundCosts
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.model_builder import build_model
from pdevis.parallel.worker_pool import WorkerPool

LONG = replace(GREEDY, max_new_tokens=40, overlap=True)


@pytest.fixture(scope="module")
def target(tiny_folder):
    return build_model(spec_of(tiny_folder("llama", layers=5)))


@pytest.fixture(
    scope="module", params=["same", "other", "other on two", pytest.param("same through gloo", marks=pytest.mark.slow)]
)
def workers(request, tiny_folder):
    """A drafter that is always right, one that is rarely right, and both on two ranks."""
    spec = spec_of(tiny_folder("llama", layers=5, seed=0 if request.param.startswith("same") else 1))
    two = request.param not in ("same", "other")
    transport = "gloo" if "gloo" in request.param else None
    pool = WorkerPool(
        spec, device_slots(2 if two else 1), target_vocab=VOCAB, transport=transport, min_ahead_probability=0.0
    )
    pool.right = request.param.startswith("same")
    yield pool
    pool.close()


def plain(target, config=LONG):
    return [event.id for event in autoregressive(Verifier(target), PROMPT, config=config, stats=DecodeStats())]


@pytest.mark.parametrize("rule", [DraftConfig("exact"), DraftConfig("parallel", 0.5), DraftConfig("skip", 0.5)])
@pytest.mark.parametrize("gamma", [1, 4, "auto"])
def test_greedy_text_is_the_targets_own(workers, target, rule, gamma):
    expected = plain(target)
    drafter = remote_drafter(workers, rule)
    for _ in range(2):
        ids, stats = decode(target, drafter, replace(LONG, gamma=gamma))
        assert ids == expected
        assert sum(stats.accept_lengths) == stats.new_tokens == len(expected)
        assert stats.ahead_rounds + stats.ahead_dropped < stats.rounds
        assert stats.drafter_idle_seconds >= 0


def test_drafts_made_ahead_are_used_if_the_drafter_is_right(workers, target, monkeypatch):
    """The target is slowed down: it is so fast otherwise that drafts ahead are not ready in time."""
    forward = target.forward
    monkeypatch.setattr(target, "forward", lambda ids: time.sleep(0.05) or forward(ids))
    _, stats = decode(target, remote_drafter(workers, DraftConfig("exact")), LONG)
    if workers.right:
        assert stats.ahead_rounds > 0
        assert stats.acceptance_rate == 1
    else:
        assert stats.ahead_dropped > 0
        assert stats.ahead_rounds < stats.rounds / 2


def test_a_drafter_with_low_confidence_does_not_draft_ahead(tiny_folder, target):
    workers = WorkerPool(
        spec_of(tiny_folder("llama", layers=5)), device_slots(1), target_vocab=VOCAB, min_ahead_probability=1.01
    )
    try:
        ids, stats = decode(target, remote_drafter(workers, DraftConfig("exact")), LONG)
    finally:
        workers.close()
    assert ids == plain(target)
    assert stats.ahead_rounds == stats.ahead_dropped == 0
    assert stats.drafter_idle_seconds > 0


def test_without_overlap_nothing_is_drafted_ahead(workers, target):
    _, stats = decode(target, remote_drafter(workers, DraftConfig("exact")), replace(LONG, overlap=False))
    assert stats.ahead_rounds == stats.ahead_dropped == 0


def test_an_eos_that_was_drafted_ahead_ends_the_text(workers, target):
    expected = plain(target)
    stop = next(token for index, token in enumerate(expected) if index > 10 and token not in expected[:index])
    config = replace(LONG, eos_ids=(stop,))
    ids, stats = decode(target, remote_drafter(workers, DraftConfig("exact")), config)
    assert ids == expected[: expected.index(stop) + 1]
    assert stats.stop_reason == "eos"


def test_abandoned_generations_leave_usable_caches(workers, target):
    expected = plain(target)
    drafter = remote_drafter(workers, DraftConfig("parallel", 0.5))
    for length in range(0, 12, 2):
        events = speculative(Verifier(target), drafter, prompt=PROMPT, config=LONG, stats=DecodeStats())
        assert [next(events).id for _ in range(length)] == expected[:length]
        events.close()
        shared = replace(LONG, reuse_prefix=True)  # the next one builds on the caches that this one left
        assert decode(target, drafter, shared)[0] == expected


def test_a_shared_prefix_is_reused_in_the_worker(workers, target):
    drafter = remote_drafter(workers, DraftConfig("exact"))
    first, _ = decode(target, drafter, LONG)
    again, _ = decode(target, drafter, replace(LONG, reuse_prefix=True))
    assert first == again


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [2, "auto"])
def test_sampled_text_keeps_the_targets_distribution(tiny_folder, gamma):
    """The first two sampled tokens over many seeds against the exact distribution (total variation)."""
    target = build_model(spec_of(tiny_folder("llama", layers=2, vocab_size=16, eos_token_id=None)))
    spec = spec_of(tiny_folder("llama", layers=2, vocab_size=16, seed=1, eos_token_id=None))
    prompt, count = [3, 1, 4], 700
    with torch.inference_mode():
        target.rewind(0)
        first = target.forward(torch.tensor(prompt))[-1].double().softmax(-1)
        exact = torch.zeros(16, 16, dtype=torch.float64)
        for token in range(16):
            target.rewind(len(prompt))
            exact[token] = first[token] * target.forward(torch.tensor([token]))[-1].double().softmax(-1)
    seen = torch.zeros(16, 16, dtype=torch.float64)
    workers = WorkerPool(spec, device_slots(1), target_vocab=16, min_ahead_probability=0.0)
    try:
        drafter, ahead = remote_drafter(workers, DraftConfig("exact")), 0
        policy = AutoGamma(RoundCosts(0.01, {1: 1.0, 17: 1.0}, [0.5])) if gamma == "auto" else None
        for seed in range(count):
            config = DecodeConfig(6, gamma, temperature=1.0, seed=seed, eos_ids=(), overlap=True)
            stats = DecodeStats()
            events = speculative(Verifier(target), drafter, prompt=prompt, config=config, stats=stats, policy=policy)
            ids = [event.id for event in events]
            seen[ids[0], ids[1]] += 1 / count
            ahead += stats.ahead_rounds
    finally:
        workers.close()
    noise = (exact * (1 - exact) / count).sqrt().sum() * 0.4  # expected distance of a true sample
    assert 0.5 * (seen - exact).abs().sum() < 1.3 * noise + 0.01
    if gamma == 2:  # γ = auto leaves no room for another round in so short a text
        assert ahead > 0
