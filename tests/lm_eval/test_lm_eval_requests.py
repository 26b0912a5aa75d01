"""Arguments of lm_eval become settings of pdevis; answers end at stop strings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pdevis import DecodeConfig
from pdevis.lm_eval.__main__ import name_device
from pdevis.lm_eval.adapter import model_class
from pdevis.lm_eval.arguments import read_request, sort_settings
from pdevis.lm_eval.stops import cut_answer
from pdevis.reasoning.split_reasoning import SplitText


def test_answers_end_at_the_first_stop_string() -> None:
    assert cut_answer("abcXYZ rest", ["rest", "XYZ"]) == SplitText("", "abc")
    assert cut_answer("one two", ["XYZ"]) == cut_answer("one two", []) == SplitText("", "one two")


def test_thinking_is_left_out_and_may_hold_stop_strings() -> None:
    text = "<think>a\n\nb</think>\n\nanswer\n\nmore"
    assert cut_answer(text, ["\n\n"]) == cut_answer(text, ["\n\n"], "</think>") == SplitText("a\n\nb", "answer")
    assert cut_answer("done</end>\nyes", [], "</end>").answer == "yes"  # any text may end a thought
    assert cut_answer("a\n</think>\nb</think>\nyes", []).answer == "yes"


def test_a_thought_that_does_not_end_is_no_answer() -> None:
    assert cut_answer("<think>A is", ["\n"]) == SplitText("A is", "", finished=False)
    assert cut_answer("A is", ["\n"], opening="<think>") == SplitText("A is", "", finished=False)
    assert cut_answer("no thought\nat all", ["\n"], "</think>").answer == "no thought"


def test_requests_become_settings() -> None:
    base = DecodeConfig(max_new_tokens=256, gamma=3, seed=1)
    options = {"until": ["\n", ""], "max_new_tokens": 7, "temperature": 0.0}
    config = read_request(options, number=4, base=base, think_end="</think>")
    assert (config.stop, config.stop_in_thoughts, config.stop_after) == (("\n",), False, "</think>")
    assert (config.max_new_tokens, config.temperature, config.gamma, config.eos_ids) == (7, 0.0, 3, None)
    config = read_request({"temperature": 0.7, "top_k": 5}, number=4, base=base)
    assert (config.max_new_tokens, config.temperature, config.top_k, config.seed) == (256, 0.7, 5, 5)
    config = read_request({"do_sample": False, "temperature": 0.7}, number=0, base=base)
    assert config.greedy
    with pytest.raises(ValueError, match="num_beams: must be some of"):
        read_request({"num_beams": 4}, number=0, base=base)


def test_the_device_of_the_models_is_the_one_that_lm_eval_records(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ["--model", "pdevis", "--model_args"]
    for gpu, default in ((False, "cpu"), (True, "cuda:0")):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr("torch.cuda.device_count", lambda gpu=gpu: int(gpu))
        named = [*model, "target=x,gamma=3", "--tasks", "a", "--device", default]
        assert name_device([*model, "target=x,gamma=3", "--tasks", "a"]) == named
    parts = [*model, "target=x,device=cpu:1", "gamma=3", "--tasks", "a"]
    assert name_device(parts) == [*model, "target=x,gamma=3", "--tasks", "a", "--device", "cpu:1"]
    for words in (["ls", "tasks"], [*model, "target=x", "--device=cpu"], ["--config", "f.yaml", *model, "target=x"]):
        assert name_device(words) == words


def test_model_arguments(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("llama")
    models, draft = sort_settings({"drafter": "self", "draft_mode": "skip", "threshold": 0.8, "batch_size": 1})
    assert (models, draft) == ({"drafter": "self"}, {"mode": "skip", "threshold": 0.8})
    for wrong, message in (
        ({"treshold": 0.8, "target": str(folder)}, "unknown argument treshold; did you mean threshold"),
        ({}, "target=MODEL is missing"),
        ({"target": str(folder), "enable_thinking": True}, "thinking = 'on': this model's chat template has no switch"),
        ({"target": str(folder), "thinking": "on", "enable_thinking": True}, "are the same setting: give one of them"),
        ({"target": str(folder), "gamma": 0}, "gamma = 0"),
        ({"target": str(folder), "method": "fast"}, "method = 'fast'"),
        ({"target": str(folder), "max_length": 1 << 40}, "max_length"),
        ({"target": str(folder / "no")}, "no"),
    ):
        with pytest.raises(ValueError, match=message):
            model_class()(**wrong)
