"""pdevis inside the lm-evaluation-harness: likelihoods against transformers', answers against the decoder's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.lm_eval_reference import TOLERANCE, log_likelihood, make_adapter, make_reference
from helpers.tiny_models import EOS
from pdevis import DecodeConfig
from pdevis.lm_eval import __main__ as script
from pdevis.lm_eval.adapter import model_class
from pdevis.lm_eval.scoring import Scorer


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Any:
    return make_adapter(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return make_reference(folder)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def plain(stops: list[str], **changes: Any) -> dict[str, Any]:
    return {"until": stops, "max_gen_toks": 24, "do_sample": False} | changes


def test_log_likelihoods_are_transformers(adapter: Any, reference: Any) -> None:
    pairs = [
        ("The sky is", " blue"),
        ("The sky is", " green"),
        ("The sky", " is blue"),
        ("", "alone"),
        ("x", "y" * 300),
    ]
    results = adapter.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(pairs, results, strict=True):
        ids = adapter.tokenizer.encode(context) or [EOS]
        expected, same = log_likelihood(reference, ids, adapter.tokenizer.encode(continuation))
        assert total == pytest.approx(expected, rel=TOLERANCE)
        assert greedy == same


def test_greedy_continuations_are_recognised(adapter: Any) -> None:
    written = adapter.pair.generate(adapter.tokenizer.encode("The sky"), DecodeConfig(max_new_tokens=5), "target").ids
    scorer = Scorer(adapter.pair.target)
    scorer.reset()
    context = adapter.tokenizer.encode("The sky")
    assert scorer.score(context, written)[1]
    assert not scorer.score(context, [written[0], (written[1] + 1) % 250, *written[2:]])[1]
    adapter._clear_caches()


def test_scores_do_not_depend_on_what_was_scored_before(adapter: Any, reference: Any) -> None:
    scorer = Scorer(adapter.pair.target)
    scorer.reset()
    base = [(7 * i) % 250 for i in range(60)]
    cases = [
        (base[:40], base[40:]),
        (base[:40], [1, 2]),
        (base[:10], [base[10]]),
        (base, [3]),
        (base, [3]),
        ([5], base),
    ]
    for context, continuation in cases:
        expected = log_likelihood(reference, context, continuation)
        assert scorer.score(context, continuation)[0] == pytest.approx(expected[0], rel=TOLERANCE)
    adapter._clear_caches()


def test_rolling_likelihood_covers_every_token_once(folder: Path, adapter: Any, reference: Any) -> None:
    text = "A text that is longer than the context which this model is allowed to see at once."
    ids = adapter.tokenizer.encode(text)
    whole = adapter.loglikelihood_rolling([request(text)], disable_tqdm=True)
    assert whole == [pytest.approx(log_likelihood(reference, [EOS], ids)[0], rel=TOLERANCE)]
    short = model_class()(target=str(folder), target_precision="float64", max_length=32)
    total, first = 0.0, 0
    while first < len(ids):  # windows of 32, the last one with a full context
        last = min(first + 32, len(ids))
        context = ([EOS, *ids])[max(0, last - 32) : first + 1]
        total += log_likelihood(reference, context, ids[first:last])[0]
        first = last
    assert short.loglikelihood_rolling([request(text)], disable_tqdm=True) == [pytest.approx(total, rel=TOLERANCE)]


def test_long_context_is_truncated_on_the_left(folder: Path, reference: Any) -> None:
    short = model_class()(target=str(folder), target_precision="float64", max_length=16)
    [(total, _)] = short.loglikelihood([request("0123456789" * 5, "ab")], disable_tqdm=True)
    ids = short.tokenizer.encode("0123456789" * 5 + "ab")
    assert total == pytest.approx(log_likelihood(reference, ids[-17:-2], ids[-2:])[0], rel=TOLERANCE)
    with pytest.raises(ValueError, match="at most 16"):
        short.loglikelihood([request("a", "b" * 17)], disable_tqdm=True)


def test_answers_end_at_the_stop_string(adapter: Any) -> None:
    context = "Why is the sky blue?"
    whole = adapter.pair.generate(adapter.tokenizer.encode(context), DecodeConfig(max_new_tokens=24), "target").text
    assert len(whole) > 12
    for start, length in ((3, 1), (5, 3), (8, 4)):
        stop = whole[start : start + length]
        [text] = adapter.generate_until([request(context, plain([stop, "never there"]))], disable_tqdm=True)
        assert text == whole[: whole.index(stop)]
    [text] = adapter.generate_until([request(context, plain([]))], disable_tqdm=True)
    assert text == whole
    later, earlier = whole[9:11], whole[4:6]
    [text] = adapter.generate_until([request(context, plain([later, earlier]))], disable_tqdm=True)
    assert text == whole[: min(whole.index(later), whole.index(earlier))]


def test_thought_that_the_prompt_opens_is_no_answer(adapter: Any, caplog: pytest.LogCaptureFixture) -> None:
    requests = [request(f"Tell me{end}", plain([])) for end in ("", "<think>\n")]
    without, opened = adapter.generate_until(requests, disable_tqdm=True)
    assert without
    assert opened == ""
    note = "1 of 2 answers end inside a thought and count as no answer: give a larger max_gen_toks, or thinking=off if"
    assert note in caplog.text


def test_sampled_answers_are_reproducible_and_differ(adapter: Any) -> None:
    requests = [request("Tell me", plain([], do_sample=True, temperature=1.5, top_p=0.9)) for _ in range(2)]
    first = adapter.generate_until(requests, disable_tqdm=True)
    assert first == adapter.generate_until(requests, disable_tqdm=True)
    assert first[0] != first[1]


def test_chat_template(adapter: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = adapter.apply_chat_template(messages)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert adapter.tok_encode(prompt) == adapter.pair.encode(messages)
    assert adapter.chat_template(True) == adapter.tokenizer.chat_template
    assert adapter.tokenizer_name
    assert "/" not in adapter.tokenizer_name


def test_a_missing_lm_eval_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pdevis.lm_eval.adapter.find_spec", lambda name: None)
    assert script.main(["--tasks", "x"]) == 2
    assert capsys.readouterr().err == "error: lm_eval is not installed: pip install lm-eval\n"


def test_a_wrong_argument_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """lm_eval makes the model from --model_args; an error that this raises reaches the user as one line."""
    import lm_eval.__main__
    from lm_eval.api.registry import get_model

    def evaluate() -> None:
        assert sys.argv[1:] == ["--model", "pdevis"]
        get_model("pdevis").create_from_arg_string("target=x,gama=3", {"batch_size": 1, "device": "cuda:0"})

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", [])
    assert script.main(["--model", "pdevis"]) == 2
    assert capsys.readouterr().err == "error: --model_args: unknown argument gama; did you mean gamma?\n"


def test_default_device_of_lm_eval_needs_no_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert model_class()(target=str(folder), device="cuda:0").pair.describe()["target_device"] == "cpu"
