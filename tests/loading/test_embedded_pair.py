"""The embedded model end to end: the default of `make chat`, against transformers' own `generate`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import ROOT
from pdevis import DecodeConfig, DraftConfig, load_pair

NEW = 16
PROMPTS = [
    "Why is the sky blue?",
    "Write a haiku about autumn leaves.",
    "What is 12 + 30?",
    "Name three countries in South America.",
    "Translate to Spanish: Good morning, my friend.",
    "Write a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What is the boiling point of water in Celsius?",
    "Explain what a neural network is in one sentence.",
    "List the planets of the solar system.",
    "Correct the grammar: She go to school yesterday.",
    "Write one sentence about the sea.",
    "How do I tie a bow tie?",
    "What does HTTP stand for?",
    "Convert 3 km to metres.",
    "Tell me a short joke.",
    "Is 17 a prime number?",
    "Describe a cat to someone who has never seen one.",
    'Continue the list: "red", "green",',
]
RULES = [
    DraftConfig(mode="exact"),
    DraftConfig(mode="skip", check="planned", threshold=0.97),
    DraftConfig(mode="parallel", check="planned"),
    DraftConfig(mode="skip", check="inline", threshold=0.9, window=3),
    DraftConfig(mode="parallel", check="inline", window=3),
]


@pytest.fixture(scope="module")
def pair(embedded_folder):
    return load_pair("smollm2-135m", device="cpu")


@pytest.fixture(scope="module")
def expected_ids(pair, embedded_folder) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([pair.encode(prompt)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        expected.append(out[0, ids.shape[1] :].tolist())
    return expected


@pytest.mark.parametrize(
    "rule",
    [*RULES[:3], *(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[3:])],
    ids=lambda rule: f"{rule.mode}-{rule.check}",
)
def test_greedy_ids_are_those_of_transformers_generate(pair, expected_ids, rule):
    """All 20 prompts with the default rule, five with each other rule; every rule has another γ."""
    some = slice(None) if rule.mode == "exact" else slice(RULES.index(rule), None, 4)
    pair.configure(rule)
    accepted = 0
    for prompt, expected in zip(PROMPTS[some], expected_ids[some], strict=True):
        generation = pair.generate(prompt, DecodeConfig(max_new_tokens=NEW, gamma=2 + RULES.index(rule)))
        assert generation.ids == expected, prompt
        accepted += generation.stats.accepted
    assert accepted > 0


def test_plain_decoding_of_the_target(pair, expected_ids):
    for prompt, expected in zip(PROMPTS[:5], expected_ids[:5], strict=True):
        assert pair.generate(prompt, DecodeConfig(max_new_tokens=NEW), "target").ids == expected


def test_the_int8_drafter_mostly_agrees_with_the_target(pair):
    pair.configure(DraftConfig(mode="exact"))
    all_stats = [pair.generate(prompt, DecodeConfig(max_new_tokens=NEW)).stats for prompt in PROMPTS[:6]]
    assert sum(stats.accepted for stats in all_stats) / sum(stats.drafted for stats in all_stats) > 0.6


def test_one_prompt_as_json(expected_ids):
    """`python appInference.py --prompt … --json` in a separate process: one object, transformers' ids."""
    command = [
        sys.executable,
        "appInference.py",
        "--device",
        "cpu",
        "--prompt",
        PROMPTS[0],
        "--length",
        str(NEW),
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "ids", "stats", "config"}
    assert answer["ids"] == expected_ids[0]
    assert answer["stats"]["new_tokens"] == len(expected_ids[0])
    assert answer["config"]["target"] == "smollm2-135m"
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("precision", ["packed", "int8"])
def test_tokens_have_the_same_bits_at_once_and_one_by_one(pair, precision):
    """A whole forward, not only its products: verification computes exactly the numbers of plain decoding."""
    if precision == "packed" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("packed products of one row use another kernel on this CPU")
    # The int8 target of a pair that shares its weights: both models must then use the target's formats.
    model = (pair if precision == "packed" else load_pair("smollm2-135m", device="cpu", target_precision="int8")).target
    ids = torch.randint(0, 40000, (60,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model.rewind(0)
        model.prefill(ids[:20])
        alone = torch.cat([model.forward(ids[i : i + 1]) for i in range(20, 60)])
        for tokens in (2, 3, 5, 9):
            model.rewind(20)
            pieces = [model.forward(piece) for piece in ids[20:].split(tokens)]
            assert torch.equal(torch.cat(pieces), alone), tokens
    pair.reset()
