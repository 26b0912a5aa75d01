"""Penalties, biases and forbidden tokens: greedy text is transformers' own, sampled text has the exact distribution."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from pdevis import DecodeConfig, DraftConfig, load_pair
from pdevis.controls.processors import OccurrencePenalty, make_processors
from pdevis.decoding.sampling import distribution, process
from pdevis.loading.checkpoint import find_source, read_model

CPU = torch.device("cpu")
LENGTH = 24
SETTINGS = 30  # random ones of each part
PARTS = [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))]


@pytest.fixture(scope="module")
def pair_and_model(tiny_folder) -> Any:
    folder = str(tiny_folder("qwen3", layers=3))
    pair = load_pair(folder, str(tiny_folder("qwen3", layers=3, seed=1)), device="cpu", target_precision="float32")
    same = load_pair(folder, device="cpu", target_precision="float32", draft=DraftConfig("skip", 0.5))
    return (pair, same), read_model(find_source(folder), torch.float32, CPU)


def random_settings(number: int) -> tuple[DecodeConfig, dict[str, Any]]:
    """Return settings of pdevis, and what they are called in transformers' `generate`."""
    r = random.Random(number)
    ours: dict[str, Any] = {"max_new_tokens": LENGTH, "gamma": r.choice([1, 3, 5, "auto"])}
    theirs: dict[str, Any] = {"max_new_tokens": LENGTH}
    eos = tuple(r.sample(range(264), r.choice([0, 1, 40])))
    ours["eos_ids"], theirs["eos_token_id"] = eos, list(eos) or None
    if r.random() < 0.5:
        ours["repetition_penalty"] = theirs["repetition_penalty"] = r.choice([0.8, 1.1, 1.7])
    if r.random() < 0.5:
        bias = {r.randrange(264): r.uniform(-4, 4) for _ in range(3)}
        ours["logit_bias"] = bias
        theirs["sequence_bias"] = {(token,): value for token, value in bias.items()}
    if r.random() < 0.5:
        tokens = tuple(r.sample(range(264), 30))
        ours["suppress_tokens"], theirs["suppress_tokens"] = tokens, list(tokens)
    if r.random() < 0.5 and eos:
        ours["min_new_tokens"] = theirs["min_new_tokens"] = r.randrange(1, LENGTH)
    if r.random() < 0.3:
        ours["processors"] = [LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])]
        theirs["logits_processor"] = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2)])
    return DecodeConfig(**ours), theirs


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("drafter", [0, 1], ids=["another model", "the target's own layers"])
def test_greedy_text_is_that_of_generate(pair_and_model, drafter, part):
    pairs, model = pair_and_model
    pair = pairs[drafter]
    accepted = 0
    for number in range(part * SETTINGS, (part + 1) * SETTINGS):
        config, options = random_settings(number)
        ids = [random.Random(number).randrange(256) for _ in range(1 + number % 9)]
        prompt = torch.tensor([ids])
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **options
        )[0, len(ids) :].tolist()
        made = pair.generate(ids, config)
        assert made.ids == expected, (number, config)
        accepted += made.stats.accepted
        if number % 10 == 0:
            assert pair.generate(ids, config, "target").ids == expected
    assert accepted > 0 or drafter == 0, "the test must see accepted drafts"


def test_occurrence_penalties_count_the_text_alone():
    penalty = OccurrencePenalty(presence=0.5, frequency=0.25, prompt_tokens=2)
    changed = penalty(torch.tensor([[1, 2, 3, 3, 1]]), torch.zeros(1, 5))
    torch.testing.assert_close(changed, torch.tensor([[0.0, -0.75, 0.0, -1.0, 0.0]]))


def test_sampled_text_has_the_processed_distribution(tiny_model):
    from pdevis.decoding.speculative import speculative
    from pdevis.decoding.verifier import Verifier
    from pdevis.drafting.drafter import Drafter
    from pdevis.generation import DecodeStats
    from pdevis.loading.weights.weight_reader import read_weights
    from pdevis.models.stack import DecoderStack

    made = {"layers": 2, "vocab_size": 5, "eos_token_id": None}
    target, drafter = (
        DecoderStack(read_weights(tiny_model("llama", seed=seed, **made), "float64", CPU)) for seed in (0, 1)
    )
    prompt, runs = [1, 3, 0], 1500
    base = DecodeConfig(
        max_new_tokens=2, gamma=2, temperature=1.5, eos_ids=(), frequency_penalty=1.0, logit_bias={2: 1.0}, min_p=0.05
    )
    config = replace(base, processors=make_processors(base, prompt_tokens=len(prompt)))
    joint = torch.zeros(5, 5)
    with torch.inference_mode():

        def exact(ids: list[int]) -> torch.Tensor:
            target.rewind(0)
            logits = target.forward(torch.tensor(ids))[-1:]
            return distribution(process(config, ids, logits), config)[0]

        first = exact(prompt)
        for token in range(5):
            joint[token] = first[token] * exact([*prompt, token])
    counts = torch.zeros(5, 5)
    accepted = 0
    for seed in range(runs):
        stats = DecodeStats()
        events = list(
            speculative(
                Verifier(target),
                Drafter(drafter, DraftConfig("exact"), 5),
                prompt=prompt,
                config=replace(config, seed=seed),
                stats=stats,
            )
        )
        counts[events[0].id, events[1].id] += 1
        accepted += stats.accepted
    assert 0 < accepted < runs
    assert float((counts / runs - joint).abs().sum() / 2) < 0.05  # total variation


def test_processors_leave_logits_alone_without_settings(pair_and_model):
    logits = torch.randn(2, 7)
    assert process(DecodeConfig(), [1, 2, 3], logits) is logits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"min_p": 1.5}, "min_p = 1.5"),
        ({"min_new_tokens": -1}, "min_new_tokens = -1"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias = -1"),
        ({"suppress_tokens": (1.5,)}, "suppress_tokens = 1.5"),
        ({"processors": ["text"]}, "processors: 'text' must be a function"),
        ({"stop": ("",)}, "stop = ''"),
        ({"logprobs": -1}, "logprobs = -1"),
    ],
)
def test_wrong_settings_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**changes)


@pytest.mark.parametrize("changes", [{"suppress_tokens": (9999,)}, {"logit_bias": {9999: 1.0}}])
def test_ids_outside_the_vocabulary(pair_and_model, changes):
    pairs, _ = pair_and_model
    with pytest.raises(ValueError, match="has id 9999: must be below 264"):
        pairs[0].generate([1], DecodeConfig(**changes))


def test_log_probabilities_are_the_targets(pair_and_model):
    pairs, model = pair_and_model
    config = DecodeConfig(max_new_tokens=12, eos_ids=(), logprobs=3, repetition_penalty=1.3)
    stream = pairs[1].stream([5, 6, 7], config)
    events = list(stream)
    with torch.inference_mode():
        logprobs = model(torch.tensor([[5, 6, 7, *stream.ids]])).logits[0].log_softmax(-1)
    for place, event in enumerate(events, 2):
        assert event.logprob.logprob == pytest.approx(float(logprobs[place, event.id]), abs=1e-4)
        best = logprobs[place].topk(3)
        assert [token for token, _ in event.logprob.top] == best.indices.tolist()
        assert [value for _, value in event.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert next(pairs[1].stream([5], DecodeConfig(max_new_tokens=2, eos_ids=()))).logprob is None


def test_settings_can_be_keys():
    one = DecodeConfig(logit_bias={1: 2.0}, processors=[len], stop=("x",))
    assert {one: 1}[DecodeConfig(logit_bias={1: 2.0}, processors=[len], stop=("x",))] == 1
