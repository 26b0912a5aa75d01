"""Stop strings: texts end where transformers' `generate` ends them, also in the middle of an accepted draft."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pdevis import DecodeConfig, load_pair
from pdevis.controls.stop_strings import StopStrings, split_special
from pdevis.loading.checkpoint import find_source, read_model

CPU = torch.device("cpu")
LENGTH = 40


@pytest.fixture(scope="module")
def pair_and_model(tiny_folder) -> Any:
    folder = str(tiny_folder("llama", layers=3))
    return load_pair(folder, device="cpu", target_precision="float32"), read_model(
        find_source(folder), torch.float32, CPU
    )


def test_texts_end_where_those_of_generate_do(pair_and_model):
    pair, model = pair_and_model
    ended, inside = 0, 0
    for number in range(60):
        r = random.Random(number)
        ids = [r.randrange(32, 127) for _ in range(1 + number % 7)]
        whole = pair.generate(ids, DecodeConfig(max_new_tokens=LENGTH, eos_ids=()), "target")
        text = whole.text
        place = r.randrange(max(1, len(text) - 4))
        stops = tuple({text[place : place + r.randrange(1, 5)], r.choice(["zz", "Q!", "no such text"])} - {""})
        stops = tuple(stop for stop in stops if "\N{REPLACEMENT CHARACTER}" not in stop) or ("never",)
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
    assert ended > 10
    assert inside > 3, "the test must see drafts that are cut in the middle"


def test_a_string_across_tokens_and_multi_byte_letters(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    found = StopStrings(["né!"], tokenizer)
    ids = tokenizer("a né n né! b", add_special_tokens=False)["input_ids"]
    ends = [found.add(token) for token in ids]
    assert ends.index(True) == len("a né n né!".encode()) - 1


def test_only_after_a_tag(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    found = StopStrings(["."], tokenizer, after="</think>")
    ids = tokenizer("a. b.</think> c. d", add_special_tokens=False)["input_ids"]
    ends = [found.add(token) for token in ids]
    assert ends.index(True) == len("a. b.</think> c.") - 1
    found = StopStrings(["\n"], tokenizer, after="</think>")
    ids = tokenizer("</think>\n\nyes\n", add_special_tokens=False)["input_ids"]
    assert [found.add(token) for token in ids].index(True) == len(ids) - 1, "blanks after the tag are no answer"


def test_special_tokens_are_ids(tiny_tokenizer, pair_and_model):
    tokenizer = tiny_tokenizer()
    assert split_special(["<|im_end|>", "text"], tokenizer) == (("text",), (258,))
    pair, _ = pair_and_model
    made = pair.generate([40], DecodeConfig(max_new_tokens=9, stop=("<|im_end|>",), eos_ids=()))
    assert made.stats.stop_reason in ("eos", "length")
