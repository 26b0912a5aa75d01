"""Reasoning is divided from the answer while the text is written, as the whole text is divided in the end."""

from __future__ import annotations

import random
from typing import Any

import pytest

from helpers.chat import FakeTokenizer
from helpers.tiny_models import ANSWER, OPENING_TEMPLATE, THINKING_TOKENS, THOUGHT, make_tokenizer
from pdevis.reasoning.reasoning_stream import Part, ReasoningStream, prompt_opening
from pdevis.text import read_thoughts

PAIRS = [
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
]
TEXTS = [  # opening tag in the prompt, text
    *((opening, f"A? <b>No</b>.\n\n1 < 2{closing}\n\nB. 4 < 5\n") for opening, closing in PAIRS),
    *(("", f"{opening}\nA? [No.]\n{closing}\n\nB. `{opening}` [it] <b\n") for opening, closing in PAIRS),
    *(("", f"\n\n{opening}A? No") for opening, _ in PAIRS),
    ("<think>", "A? No"),
    ("<think>", ""),
    ("", "<think>\n\n</think>\n\nB"),
    ("", "<think>a <think> b</think> B"),
    ("", "[THINK]a </think> b[/THINK] B"),
    ("", "<think>say `</think>` ok</think>`</think>` is a tag"),
    ("", "Use `<think>` here"),
    ("", "The tag <think> opens a thought"),
    ("", "\n\n B <c"),
    ("", "analysisA? No.assistantfinalB"),
    ("", "analysis of B"),
    ("", "Here is my thought process: A? No."),
]


def cut(text: str, seed: int) -> list[str]:
    """Return the text in random pieces, as tokens are; some have no text."""
    r = random.Random(seed)
    pieces = []
    while text:
        length = r.choice([0, 1, 1, 2, 3, 5, 20])
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def joined(parts: list[Part], is_reasoning: bool) -> str:
    return "".join(part.text for part in parts if part.is_reasoning == is_reasoning)


@pytest.mark.parametrize(("opening", "text"), TEXTS)
def test_parts_are_those_of_the_whole_text(opening: str, text: str) -> None:
    for seed in range(40):
        stream = ReasoningStream(opening)
        pieces = cut(text, seed)
        parts = [part for piece in pieces for part in stream.add(piece)] + stream.finish()
        split = stream.split
        assert joined(parts, True) == split.reasoning, pieces
        assert joined(parts, False) == split.answer, pieces
        assert stream.is_thinking == (not split.finished)
        assert stream.text == opening + text


def test_parts_come_as_soon_as_they_are_certain() -> None:
    stream = ReasoningStream()
    steps = [(piece, stream.add(piece), stream.is_thinking) for piece in ("<", "think", ">\n", "A?", " 1 <", " 2", "<")]
    assert steps == [
        ("<", [], False),
        ("think", [], False),
        (">\n", [], True),
        ("A?", [Part("A?", True)], True),
        (" 1 <", [Part(" 1", True)], True),
        (" 2", [Part(" < 2", True)], True),
        ("<", [], True),
    ]
    assert stream.finish() == [Part("<", True)]


@pytest.mark.parametrize(
    ("opening", "pieces", "tokens"),
    [
        ("", ["<think>", "\n", "A", "</think>", "\n\n", "B"], 4),
        ("", ["\n", "<", "think", ">", "A", "<", "/think>", "B", ""], 7),  # blanks before it count
        ("<think>", ["A", "", "</think>B", "C"], 3),
        ("<think>", ["A", "B", ""], 3),
        ("", ["A", "B", "</think>", "C"], 3),  # the prompt's end is not known
        ("", ["<", "b>", "A", ""], 0),
        ("", ["<think>", "A", "</think>", "B", "\n", "<think>", "C", "</think>", "D"], 6),
    ],
)
def test_tokens_of_thoughts(opening: str, pieces: list[str], tokens: int) -> None:
    stream = ReasoningStream(opening)
    for piece in pieces:
        stream.add(piece)
    stream.finish()
    assert stream.tokens == tokens


def test_an_unknown_tag_that_the_caller_names() -> None:
    stream = ReasoningStream(end="###", is_thinking=True)
    parts = [part for piece in ("a #", "#", "# b") for part in stream.add(piece)]
    assert parts == [Part("a", True), Part("b", False)]


def thinking_tokenizer(special: bool = False) -> Any:
    tokenizer = make_tokenizer(chat_template=OPENING_TEMPLATE)
    tokenizer.add_tokens(list(THINKING_TOKENS), special_tokens=special)
    return tokenizer


def test_the_prompts_own_tag() -> None:
    for special, opening in ((False, "<think>"), (True, "")):  # special tokens are never part of the text
        tokenizer = thinking_tokenizer(special)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        ids = ids if isinstance(ids, list) else ids["input_ids"]
        assert prompt_opening(tokenizer, ids) == opening
        assert prompt_opening(tokenizer, ids[:-1]) == ""


@pytest.mark.parametrize("is_local", [True, False])
def test_ids_of_a_text(is_local: bool) -> None:
    text = f"<think>{THOUGHT}</think>\n\n{ANSWER}"
    tokenizer: Any = thinking_tokenizer() if is_local else FakeTokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if is_local else list(map(ord, text))
    for opening, start in (("", 0), ("<think>", 1 if is_local else len("<think>"))):
        thoughts = read_thoughts(ids[start:], tokenizer, opening)
        assert (thoughts.split.reasoning, thoughts.split.answer) == (THOUGHT, ANSWER)
        whole = len(f"<think>{THOUGHT}</think>") if not is_local else len(THOUGHT) + 2
        assert thoughts.tokens == whole - start
    assert read_thoughts(ids[:2], tokenizer, "<think>").tokens == 2  # unfinished
    assert read_thoughts([66], tokenizer).tokens == 0
