"""MMLU's scorer on right and wrong answers, with the traps of real ones."""

from __future__ import annotations

import pytest

from helpers.evaluation import score_corpus
from pdevis.benchmarks.tasks import get_task
from pdevis.benchmarks.tasks.mmlu import extract_option, format_question

ANSWERS = [
    ("C", "C"),
    ("C. True, False", "C"),  # the option's text has a False
    ("True, False", None),  # no option is named
    ("(B)", "B"),
    ("b", "B"),
    ("**D**", "D"),
    ("Ｃ", "C"),  # full width
    ("\\boxed{C}", "C"),
    ("$\\boxed{\\text{D}}$", "D"),
    ("D) Because it is so", "D"),
    ("B\n\nExplanation: the answer is not A.", "B"),
    ("C\n\nQuestion: What else?\nAnswer: A", "C"),  # a base model continues with another question
    ("The answer is C.", "C"),
    ("Answer: (A)", "A"),
    ("answer: c", "C"),
    ("The correct option is **B**.", "B"),
    ("The correct answer is option B", "B"),
    ("Option B is right", "B"),
    ("A group of order 4 is abelian, so the answer is D", "D"),  # an article is no option
    ("A good choice would be B", "B"),
    ("A", "A"),
    ("I choose A because it is true", "A"),
    ("A. one\nB. two\nC. three\nD. four\n\nThe answer is C", "C"),  # the options are repeated first
    ("Both statements are false, so B. False, False", "B"),
    ("Statement A's claim holds", None),
    ("Absolutely, Dear Ann", None),
    ("None of them", None),
    ("E", None),
    ("", None),
]


@pytest.mark.parametrize(("answer", "option"), ANSWERS)
def test_first_option(answer: str, option: str | None) -> None:
    assert extract_option(answer) == option


@pytest.mark.parametrize("answer", [answer for answer, option in ANSWERS if option != "C"])
def test_wrong_answers_are_wrong(answer: str) -> None:
    entry = {"question_id": 1, "prompt": "p", "label": "C", "subject": "s"}
    assert get_task("mmlu").score(entry, answer)["correct"] == 0


def test_score_says_what_was_read() -> None:
    entry = {"question_id": 1, "prompt": "p", "label": "C", "subject": "s"}
    task = get_task("mmlu")
    assert task.score(entry, "C. True, False") == {"correct": 1, "extracted": "C", "unfinished_thought": 0}
    assert task.score(entry, "I do not know") == {"correct": 0, "extracted": None, "unfinished_thought": 0}


def test_micro_counts_questions_and_macro_subjects() -> None:
    entries = [{"question_id": i, "prompt": "p", "label": "A", "subject": s} for i, s in enumerate("xxxy")]
    result = score_corpus(get_task("mmlu"), entries, ["A", "A", "B", "B"])
    assert result["accuracy_micro"]["score"] == pytest.approx(2 / 4)
    assert result["accuracy_macro"]["score"] == pytest.approx((2 / 3 + 0) / 2)
    assert get_task("mmlu").corpus([], [], []) == {}


def test_a_question_is_written_with_its_options() -> None:
    prompt = format_question("Why?", ["one", "two", "three", "four"])
    assert "Why?\n\nA. one\nB. two\nC. three\nD. four\n\nAnswer:" in prompt
    with pytest.raises(ValueError):
        format_question("Why?", ["one"])
