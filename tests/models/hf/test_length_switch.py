"""Rotary frequencies that depend on the length: the text of `generate` before, across and beyond the switch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.models.hf.hf_causal_lm import SEVERAL, HFCausalLM
from pdevis.models.hf.length_switch import find_length_switch
from pdevis.models.hf.self_test import find_way

SWITCH, VOCAB = 32, 160
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": SWITCH,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0 + i for i in range(8)],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MODELS = {
    "recomputes its cache": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH}),
    "keeps its cache": ("llama", {"rope_parameters": LONGROPE}),
    "changes with each token": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": SWITCH}),
}


def model_of(name: str, seed: int):
    arch, settings = MODELS[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(arch, **SMALL | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(3.0)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("name", MODELS)
def test_text_is_that_of_generate(name):
    model, other = model_of(name, 1), HFCausalLM(model_of(name, 3), "float64")
    assert find_way(model) == SEVERAL
    lm, own = HFCausalLM(model, "float64"), HFCausalLM(model, "float64")
    config = DecodeConfig(max_new_tokens=20, gamma=4, eos_ids=())
    for length in (SWITCH - 3, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 18, SWITCH - 8):
        ids = [3 + (i * 7) % 150 for i in range(length)]
        fresh = model_of(name, 1)  # the rotary embedding remembers longer texts
        expected = fresh.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, length:].tolist()
        plain = autoregressive(Verifier(lm), ids, config=config, stats=DecodeStats())
        assert [event.id for event in plain] == expected, length
        for drafter in (own, other):
            for _ in range(2):  # the second generation finds the first one's cache
                source, stats = Drafter(drafter, DraftConfig("exact"), VOCAB), DecodeStats()
                events = speculative(Verifier(lm), source, prompt=ids, config=config, stats=stats)
                assert [event.id for event in events] == expected, length
                assert drafter is other or stats.acceptance_rate == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_switch_is_found(name):
    switch = find_length_switch(model_of(name, 1))
    assert (switch.length, switch.restarts) == (SWITCH, name == "recomputes its cache")


def test_models_without_a_switch(tiny_model):
    assert find_length_switch(tiny_model("llama")) is None
    assert find_length_switch(tiny_model("qwen3_next")) is None


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_may_be_shortened_before_its_first_forward(name):
    """As after a generation that was closed early, followed by one whose prompt begins alike."""
    ids = torch.tensor([3 + (i * 7) % 150 for i in range(SWITCH + 10)])
    shortened, fresh = HFCausalLM(model_of(name, 1), "float64"), HFCausalLM(model_of(name, 1), "float64")
    shortened.prefill(ids)
    for lm in (shortened, fresh):
        if lm is fresh:
            lm.prefill(ids[: SWITCH - 3])
        lm.rewind(SWITCH - 3)
    new = ids[SWITCH - 3 : SWITCH - 1]
    torch.testing.assert_close(shortened.forward(new), fresh.forward(new), rtol=1e-9, atol=1e-9)
