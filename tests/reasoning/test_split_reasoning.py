"""Reasoning is divided from the answer: every form of tags, with and without the opening one, finished or not."""

from __future__ import annotations

import pytest

from pdevis.reasoning.split_reasoning import SplitText, opening_tag, split_reasoning

PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_every_pair_of_tags(opening: str, closing: str) -> None:
    assert split_reasoning(f"{opening}\nA? No.\n{closing}\n\nB. 4\n") == SplitText("A? No.", "B. 4\n")
    assert split_reasoning(f"A? No.\n{closing}\n\nB") == SplitText("A? No.", "B")  # the prompt has the opening tag
    assert split_reasoning(f"{opening}\nA? No") == SplitText("A? No", "", finished=False)
    assert split_reasoning(f"{opening}\n\n{closing}\n\nB") == SplitText("", "B")
    assert split_reasoning(f"{opening}A{closing}") == SplitText("A", "")
    assert opening_tag(f"<|im_start|>assistant\n{opening}\n") == opening
    assert opening_tag(f"<|im_start|>assistant\n{opening}\n\n{closing}\n\n") == ""


CHANNELS = "<|channel|>analysis<|message|>A? No.<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>"


@pytest.mark.parametrize(
    ("text", "reasoning", "answer", "finished"),
    [
        (CHANNELS, "A? No.", "B", True),
        (CHANNELS.partition("<|end|>")[0], "A? No.", "", False),
        ("<|channel|>final<|message|>B", "", "B", True),
        ("analysisA? No.assistantfinalB", "A? No.", "B", True),
        ("analysisA? No", "A? No", "", False),
        ("Here is my thought process: A? No. Here is my response: B", "A? No.", "B", True),
        ("Here's my thought process:\nA?", "", "Here's my thought process:\nA?", True),
    ],
)
def test_other_forms(text: str, reasoning: str, answer: str, finished: bool) -> None:
    assert split_reasoning(text) == SplitText(reasoning, answer, finished)


PLAIN = [
    "",
    " B\n",
    "I think so.",
    "Use `<think>` here",
    "The tag <think> opens a thought.",
    "[think] of it",
    "analysis: B",
    "analysis of B",
    "analysis_of = B",
    "<b>B</b>",
    "<answer>B</answer>",
    "`</think>` ends a thought",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_thoughts_is_unchanged(text: str) -> None:
    assert split_reasoning(text) == SplitText("", text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>A<think>b</think>\nB", "B"),  # the last part is the answer
        ("Let me see. <think>a</think> B", "B"),
        ("a</think>\nb</think>\nB", "B"),
        ("<think>a <think> b</think> B", "B"),  # a thought may name its own tag
        ("<think>a </reasoning> b</think> B", "B"),  # and another closing tag
        ("B <think>Is it? Yes.</think>\n", "B "),  # nothing follows the last thought
        ("<think>a</think>\nB\n</think>", "B\n"),
        ("<think>a</think>`</think>` is a tag", "`</think>` is a tag"),
        ("<think>a</think><answer>\nB\n</answer>", "B"),
        ("<reasoning>a</reasoning>\n<answer>B", "B"),
        ("<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>\nB<|end_of_solution|>", "B"),
    ],
)
def test_text_around_thoughts(text: str, answer: str) -> None:
    split = split_reasoning(text)
    assert (split.answer, split.finished) == (answer, True)


def test_a_second_thought_that_does_not_end_leaves_no_answer() -> None:
    assert split_reasoning("<think>a</think>B\n<think>Wait") == SplitText("a\nWait", "", finished=False)


def test_the_caller_may_name_a_closing_tag() -> None:
    assert split_reasoning("a ### b", end="###") == SplitText("a", "b")
    assert split_reasoning("a ### b") == SplitText("", "a ### b")
    assert split_reasoning("<think>a ### b", end="###") == SplitText("a", "b")
