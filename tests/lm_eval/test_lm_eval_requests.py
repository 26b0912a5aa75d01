"""Arguments of lm_eval become settings of pdevis; answers end at stop strings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tiny_models import make_tokenizer
from pdevis import DecodeConfig
from pdevis.lm_eval.adapter import model_class
from pdevis.lm_eval.arguments import read_request, sort_settings
from pdevis.lm_eval.stops import read_until, split_stops

TINY = make_tokenizer()


def test_special_token_as_stop_string() -> None:
    assert split_stops(["<|endoftext|>", "\n", ""], TINY) == (["\n"], [256])


def stream_of(*pieces: str) -> Any:
    class Pieces(list):
        closed = False

        def close(self) -> None:
            self.closed = True

    return Pieces(SimpleNamespace(text=piece) for piece in pieces)


def test_stop_string_over_several_tokens() -> None:
    stream = stream_of("ab", "", "cX", "Y", "Z", "rest")
    assert read_until(stream, ["XYZ", "rest"]) == "abc"
    assert stream.closed
    assert read_until(stream_of("aX", "Yb", "XYZ"), ["XYZ"]) == "aXYb"
    assert read_until(stream_of("one", " two"), []) == "one two"


def test_thinking_is_left_out_and_may_hold_stop_strings() -> None:
    stream = stream_of("<think>a\n\nb", "</th", "ink>\n\nans", "wer\n", "\nmore")
    assert read_until(stream, ["\n\n"], "</think>") == "answer"
    assert stream.closed
    assert read_until(stream_of("done</end>\n", "yes"), [], "</end>") == "yes"  # any text may end a thought
    assert read_until(stream_of("a\n</think>\n", "b</think>\nyes"), [], "</think>") == "yes"


def test_a_thought_that_does_not_end_is_no_answer() -> None:
    assert read_until(stream_of("<think>A", " is"), ["\n"], "</think>") == ""
    assert read_until(stream_of("A", " is"), ["\n"], "</think>", opening="<think>") == ""
    assert read_until(stream_of("no thought", "\nat all"), ["\n"], "</think>") == "no thought"


def test_requests_become_settings() -> None:
    base = DecodeConfig(max_new_tokens=256, gamma=3, seed=1)
    config, stops = read_request(
        {"until": "\n", "max_new_tokens": 7, "temperature": 0.0}, number=4, base=base, eos_ids=(9,), tokenizer=TINY
    )
    assert stops == ["\n"]
    assert (config.max_new_tokens, config.temperature, config.gamma, config.eos_ids) == (7, 0.0, 3, (9,))
    config, _ = read_request({"temperature": 0.7, "top_k": 5}, number=4, base=base, eos_ids=(), tokenizer=TINY)
    assert (config.max_new_tokens, config.temperature, config.top_k, config.seed) == (256, 0.7, 5, 5)
    config, _ = read_request({"do_sample": False, "temperature": 0.7}, number=0, base=base, eos_ids=(), tokenizer=TINY)
    assert config.greedy
    with pytest.raises(ValueError, match="num_beams: must be some of"):
        read_request({"num_beams": 4}, number=0, base=base, eos_ids=(), tokenizer=TINY)


def test_model_arguments(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("llama")
    models, draft = sort_settings({"drafter": "self", "draft_mode": "skip", "threshold": 0.8, "batch_size": 1})
    assert (models, draft) == ({"drafter": "self"}, {"mode": "skip", "threshold": 0.8})
    for wrong, message in (
        ({"treshold": 0.8, "target": str(folder)}, "unknown argument treshold; did you mean threshold"),
        ({}, "target=MODEL is missing"),
        ({"target": str(folder), "gamma": 0}, "gamma = 0"),
        ({"target": str(folder), "method": "fast"}, "method = 'fast'"),
        ({"target": str(folder), "max_length": 1 << 40}, "max_length"),
        ({"target": str(folder / "no")}, "no"),
    ):
        with pytest.raises(ValueError, match=message):
            model_class()(**wrong)
