"""A drafter whose logits are not finite: its drafts end before them, and the text is the target's."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.decoding import GREEDY, NEW, PROMPT, plain, stack_of
from helpers.processes import device_slots, remote_drafter, spec_of
from pdevis import DecodeConfig, load_pair
from pdevis.config import DraftConfig
from pdevis.decoding.gamma import AutoGamma, gamma_policy
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.parallel.worker_pool import WorkerPool
from pdevis.util.validation import DraftingWarning

VOCAB = 264
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@pytest.fixture
def target(tiny_model):
    return stack_of(tiny_model("llama"))


class FaultyModel:
    """A drafter that gives logits of one value in some of its forwards, counted from 0."""

    def __init__(self, model, value, is_faulty):
        self.model, self.value, self.is_faulty, self.forwards = model, value, is_faulty, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    @property
    def num_layers(self):
        return len(self.model.layers)

    def forward(self, ids):
        logits = self.model.forward(ids)
        self.forwards += 1
        return torch.full_like(logits, self.value) if self.is_faulty(self.forwards - 1) else logits


def decode(target, drafter, config):
    stats, policy = DecodeStats(), gamma_policy(config, AutoGamma())
    events = speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=stats, policy=policy)
    return [event.id for event in events], stats


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("gamma", [1, 4, "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_the_targets_whatever_the_drafter_returns(target, value, gamma, temperature):
    # With top_k = 1 a sampled text has one possible value.
    config = DecodeConfig(max_new_tokens=NEW, gamma=gamma, temperature=temperature, top_k=1, seed=3, eos_ids=())
    expected = plain(target)
    for is_faulty in (lambda n: True, lambda n: n == 2, lambda n: n >= 5, lambda n: n % 3 == 1):
        model = FaultyModel(target.with_own_cache(), VALUES[value], is_faulty)
        drafter = Drafter(model, DraftConfig("exact"), VOCAB)
        for _ in range(2):
            ids, stats = decode(target, drafter, config)
            assert ids == expected
            assert sum(stats.accept_lengths) == NEW


def test_invalid_drafts_are_counted_and_not_tried_again(target):
    model = FaultyModel(target.with_own_cache(), math.nan, lambda n: True)
    drafter = Drafter(model, DraftConfig("exact"), VOCAB)
    _, stats = decode(target, drafter, GREEDY)
    assert stats.invalid_drafts == stats.rounds - 1, "the last round has no draft"
    assert (stats.drafted, stats.draft_steps, stats.acceptance_rate) == (0, 1, None)
    _, stats = decode(target, drafter, GREEDY)
    assert stats.draft_steps == 1, "the next generation tries again"


def test_a_fault_in_mid_draft_keeps_the_tokens_before_it(target):
    model = FaultyModel(target.with_own_cache(), math.inf, lambda n: n == 2)
    _, stats = decode(target, Drafter(model, DraftConfig("exact"), VOCAB), GREEDY)
    assert stats.invalid_drafts == 1
    assert stats.draft_lengths[0] == 2
    assert stats.accept_lengths[0] == 3


def overflowing_folder(tiny_folder):
    """A model that is sound in float32 and overflows in float16."""
    folder = tiny_folder("llama", seed=7)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "down_proj" in name or "up_proj" in name:
            weights[name] *= 1e3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_overflow_in_float16_is_reported_once(tiny_folder):
    pair = load_pair(
        str(overflowing_folder(tiny_folder)), device="cpu", target_precision="float32", draft_precision="float16"
    )
    config = DecodeConfig(max_new_tokens=NEW, eos_ids=())
    expected = pair.generate(PROMPT, config, "target").ids
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for temperature in (0.0, 0.7):
            sampled = DecodeConfig(max_new_tokens=NEW, eos_ids=(), temperature=temperature, top_k=1, seed=1)
            made = pair.generate(PROMPT, sampled)
            assert made.ids == expected
            assert made.stats.invalid_drafts > 0
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, DraftingWarning)]
    assert len(messages) == 1
    assert "drafts ended at logits that are not finite" in messages[0]
    assert "bfloat16 or float32" in messages[0]


@pytest.mark.parametrize("overlap", [False, True])
def test_overflow_in_a_worker_process(tiny_folder, overlap):
    folder = overflowing_folder(tiny_folder)
    target = load_pair(str(folder), device="cpu", target_precision="float32", draft_precision="float32").target
    expected = plain(target)
    workers = WorkerPool(spec_of(folder, "float16"), device_slots(1), target_vocab=VOCAB)
    try:
        drafter = remote_drafter(workers, DraftConfig("exact"))
        ids, stats = decode(target, drafter, replace(GREEDY, overlap=overlap))
    finally:
        workers.close()
    assert ids == expected
    assert stats.invalid_drafts > 0
