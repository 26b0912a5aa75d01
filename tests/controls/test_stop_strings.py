"""Stop strings: texts end where transformers' `generate` ends them, also in the middle of an accepted draft."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from pdevis import DecodeConfig, load_pair
from pdevis.controls.stop_strings import StopStrings, split_special
from pdevis.loading.checkpoint import find_source, read_model
from pdevis.reasoning.reasoning_stream import ReasoningStream

CPU = torch.device("cpu")
LENGTH = 40


@pytest.fixture(scope="module")
def pair_and_model(tiny_folder) -> Any:
    folder = str(tiny_folder("llama", layers=3))
    return load_pair(folder, device="cpu", target_precision="float32"), read_model(
        find_source(folder), torch.float32, CPU
    )


@pytest.mark.parametrize("first", [0, *(pytest.param(20 * i, marks=pytest.mark.slow) for i in range(1, 10))])
def test_texts_end_where_those_of_generate_do(pair_and_model, first):
    pair, model = pair_and_model
    ended, inside = 0, 0
    for number in range(first, first + 20):
        r = random.Random(number)
        ids = [r.randrange(32, 127) for _ in range(1 + number % 7)]
        whole = pair.generate(ids, DecodeConfig(max_new_tokens=LENGTH, eos_ids=()), "target")
        text = whole.text
        place = r.randrange(max(1, len(text) - 4))
        stops = tuple({text[place : place + r.randrange(1, 5)], r.choice(["zz", "Q!", "no such text"])} - {""})
        # generate does not find letters of several tokens
        stops = tuple(stop for stop in stops if stop.isascii()) or ("never",)
        prompt = torch.tensor([ids])
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stop_strings=list(stops),
            tokenizer=pair.tokenizer,
        )[0, len(ids) :].tolist()
        config = DecodeConfig(max_new_tokens=LENGTH, eos_ids=(), stop=stops, gamma=r.choice([1, 4, 7]))
        for method in ("speculative", "target"):
            made = pair.generate(ids, config, method)
            assert made.ids == expected, (number, stops)
            assert made.stats.stop_reason == ("stop" if any(stop in made.text for stop in stops) else "length")
        ended += made.stats.stop_reason == "stop"
        lengths = pair.generate(ids, config).stats
        inside += lengths.stop_reason == "stop" and lengths.accept_lengths[-1] <= lengths.draft_lengths[-1]
        assert pair.target.length == len(ids) + len(expected) - 1, "the cache ends with the text"
    assert ended
    assert inside or first, "the test must see drafts that are cut in the middle"


def test_a_string_across_tokens_and_multi_byte_letters(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    found = StopStrings(["né!"], tokenizer)
    ids = tokenizer("a né n né! b", add_special_tokens=False)["input_ids"]
    ends = [found.add(token) for token in ids]
    assert ends.index(True) == len("a né n né!".encode()) - 1


@pytest.mark.parametrize(
    ("text", "settings", "end"),
    [
        ("a. b.###c. d.", {"end": "###", "is_thinking": True}, "a. b.###c."),  # DecodeConfig.stop_after
        ("\n\n</think>\n\nyes\n", {"opening": "<think>"}, "\n\n</think>\n\nyes\n"),  # blanks after it are no answer
        ("<think>a. b.</think> c. d.", {}, "<think>a. b.</think> c."),
        ("a. b.", {}, "a."),
        ("a. <think>b.", {}, "a."),
    ],
)
def test_not_in_thoughts(tiny_tokenizer, text, settings, end):
    tokenizer = tiny_tokenizer()
    stops = [".", "\n"]
    for is_local in (True, False):
        found = StopStrings(stops, tokenizer, ReasoningStream(**settings))
        found._stream.is_local = is_local
        ends = [found.add(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert ends.index(True) == len(end) - 1


def test_settings_about_thoughts(pair_and_model):
    pair, _ = pair_and_model
    whole = pair.generate([40, 41], DecodeConfig(max_new_tokens=LENGTH, eos_ids=()))
    stop = next(letter for letter in whole.text if letter.isalnum())
    base = DecodeConfig(max_new_tokens=LENGTH, eos_ids=(), stop=(stop,))
    thought = pair.tokenizer.encode("<think>\n", add_special_tokens=False)
    for prompt, settings, reason in (
        ([40, 41], {"stop_in_thoughts": False}, "stop"),
        ([40, 41], {"stop_after": "never written"}, "length"),
        (thought, {"stop": tuple(map(chr, range(33, 127)))}, "stop"),
        (thought, {"stop": tuple(map(chr, range(33, 127))), "stop_in_thoughts": False}, "length"),
    ):
        assert pair.generate(prompt, replace(base, **settings)).stats.stop_reason == reason


def test_special_tokens_are_ids(tiny_tokenizer, pair_and_model):
    tokenizer = tiny_tokenizer()
    assert split_special(["<|im_end|>", "text"], tokenizer) == (("text",), (258,))
    pair, _ = pair_and_model
    made = pair.generate([40], DecodeConfig(max_new_tokens=9, stop=("<|im_end|>",), eos_ids=()))
    assert made.stats.stop_reason in ("eos", "length")
