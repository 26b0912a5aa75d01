"""Drafting ahead: the text stays the target's own, what is guessed right is used, and the counts say so."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from helpers.workers import GREEDY, PROMPT, VOCAB, decode, places, plan_of, remote
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.gamma import AutoGamma, RoundCosts
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.build import build_model
from pdevis.parallel.worker_pool import WorkerPool

LONG = replace(GREEDY, max_new_tokens=40, overlap=True)


@pytest.fixture(scope="module")
def target(tiny_folder):
    return build_model(plan_of(tiny_folder("llama", layers=5)))


@pytest.fixture(
    scope="module", params=["same", "other", "other on two", pytest.param("same through gloo", marks=pytest.mark.slow)]
)
def workers(request, tiny_folder):
    """A drafter that is always right, one that hardly ever is, and both on two ranks."""
    plan = plan_of(tiny_folder("llama", layers=5, seed=0 if request.param.startswith("same") else 1))
    two = request.param not in ("same", "other")
    transport = "gloo" if "gloo" in request.param else None
    made = WorkerPool(plan, places(2 if two else 1), VOCAB, transport=transport, ahead_least=0.0)  # whatever it thinks
    made.right = request.param.startswith("same")
    yield made
    made.close()


def plain(target, config=LONG):
    return [event.id for event in autoregressive(Verifier(target), PROMPT, config=config, stats=DecodeStats())]


@pytest.mark.parametrize("rule", [DraftConfig("exact"), DraftConfig("parallel", 0.5), DraftConfig("skip", 0.5)])
@pytest.mark.parametrize("gamma", [1, 4, "auto"])
def test_greedy_text_is_the_targets_own(workers, target, rule, gamma):
    wanted = plain(target)
    drafter = remote(workers, rule)
    for _ in range(2):
        ids, stats = decode(target, drafter, replace(LONG, gamma=gamma))
        assert ids == wanted
        assert sum(stats.accept_lengths) == stats.new_tokens == len(wanted)
        assert stats.ahead_rounds + stats.ahead_dropped < stats.rounds
        assert stats.drafter_idle_seconds >= 0


def test_rounds_are_served_ahead_where_the_drafter_is_right(workers, target, monkeypatch):
    """With a target that takes its time: this one is so fast otherwise that guesses come too late."""
    forward = target.forward
    monkeypatch.setattr(target, "forward", lambda ids: time.sleep(0.05) or forward(ids))
    _, stats = decode(target, remote(workers, DraftConfig("exact")), LONG)
    if workers.right:
        assert stats.ahead_rounds > 0
        assert stats.acceptance_rate == 1
    else:
        assert stats.ahead_dropped > 0
        assert stats.ahead_rounds < stats.rounds / 2


def test_a_drafter_that_is_not_sure_does_not_draft_ahead(tiny_folder, target):
    workers = WorkerPool(plan_of(tiny_folder("llama", layers=5)), places(1), VOCAB, ahead_least=1.01)
    try:
        ids, stats = decode(target, remote(workers, DraftConfig("exact")), LONG)
    finally:
        workers.close()
    assert ids == plain(target)
    assert stats.ahead_rounds == stats.ahead_dropped == 0
    assert stats.drafter_idle_seconds > 0


def test_without_overlap_nothing_is_drafted_ahead(workers, target):
    _, stats = decode(target, remote(workers, DraftConfig("exact")), replace(LONG, overlap=False))
    assert stats.ahead_rounds == stats.ahead_dropped == 0


def test_an_eos_ends_the_text_also_where_it_was_drafted_ahead(workers, target):
    wanted = plain(target)
    stop = next(token for place, token in enumerate(wanted) if place > 10 and token not in wanted[:place])
    config = replace(LONG, eos_ids=(stop,))
    ids, stats = decode(target, remote(workers, DraftConfig("exact")), config)
    assert ids == wanted[: wanted.index(stop) + 1]
    assert stats.stop_reason == "eos"


def test_abandoned_generations_leave_nothing_behind(workers, target):
    wanted = plain(target)
    drafter = remote(workers, DraftConfig("parallel", 0.5))
    for length in range(0, 12, 2):
        events = speculative(Verifier(target), drafter, prompt=PROMPT, config=LONG, stats=DecodeStats())
        assert [next(events).id for _ in range(length)] == wanted[:length]
        events.close()
        shared = replace(LONG, reuse_prefix=True)  # the next one builds on the caches that this one left
        assert decode(target, drafter, shared)[0] == wanted


def test_a_shared_prefix_is_reused_in_the_other_process(workers, target):
    drafter = remote(workers, DraftConfig("exact"))
    first, _ = decode(target, drafter, LONG)
    again, _ = decode(target, drafter, replace(LONG, reuse_prefix=True))
    assert first == again


@pytest.mark.parametrize("gamma", [2, "auto"])
def test_sampled_text_keeps_the_targets_distribution(tiny_folder, gamma):
    """The first two sampled tokens over many seeds against the exact distribution (total variation)."""
    target = build_model(plan_of(tiny_folder("llama", layers=2, vocab_size=16, eos_token_id=None)))
    plan = plan_of(tiny_folder("llama", layers=2, vocab_size=16, seed=1, eos_token_id=None))
    prompt, count = [3, 1, 4], 700
    with torch.inference_mode():
        target.rewind(0)
        first = target.forward(torch.tensor(prompt))[-1].double().softmax(-1)
        exact = torch.zeros(16, 16, dtype=torch.float64)
        for token in range(16):
            target.rewind(len(prompt))
            exact[token] = first[token] * target.forward(torch.tensor([token]))[-1].double().softmax(-1)
    seen = torch.zeros(16, 16, dtype=torch.float64)
    workers = WorkerPool(plan, places(1), 16, ahead_least=0.0)
    try:
        drafter, ahead = remote(workers, DraftConfig("exact")), 0
        policy = AutoGamma(RoundCosts(0.01, {1: 1.0, 17: 1.0}, [0.5])) if gamma == "auto" else None
        for seed in range(count):
            config = DecodeConfig(6, gamma, temperature=1.0, seed=seed, eos_ids=(), overlap=True)
            stats = DecodeStats()
            ids = [
                event.id
                for event in speculative(
                    Verifier(target), drafter, prompt=prompt, config=config, stats=stats, policy=policy
                )
            ]
            seen[ids[0], ids[1]] += 1 / count
            ahead += stats.ahead_rounds
    finally:
        workers.close()
    noise = (exact * (1 - exact) / count).sqrt().sum() * 0.4  # expected distance of a true sample
    assert 0.5 * (seen - exact).abs().sum() < 1.3 * noise + 0.01
    if gamma == 2:  # γ = auto leaves no room for another round in so short a text
        assert ahead > 0
