"""MATH's scorer: boxed answers with braces, equal values in other forms, wrong ones; results of math-verify."""

from __future__ import annotations

import threading

import pytest

from pdevis.benchmarks.tasks import get_task
from pdevis.benchmarks.tasks.math import INSTRUCTION, last_boxed

RIGHT = [
    ("\\frac{1}{2}", "So it is \\boxed{\\frac{1}{2}}."),
    ("\\frac{1}{2}", "The answer is 0.5"),
    ("\\frac{\\sqrt{2}}{\\frac{1}{2}}", "\\boxed{2\\sqrt{2}}"),
    ("\\frac{\\sqrt{3}}{2}", "Thus $\\boxed{\\frac{\\sqrt{3}}{2}}$, done."),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"),
    ("\\left(3,\\frac{\\pi}{2}\\right)", "\\boxed{(3, \\frac{\\pi}{2})}"),
    ("\\{-2,3\\}", "\\boxed{\\{3, -2\\}}"),
    ("90^\\circ", "\\boxed{90}"),
    ("10000", "\\boxed{10,000}"),
    ("\\$18.90", "\\boxed{18.9}"),
    ("x^2-9", "\\boxed{(x-3)(x+3)}"),
    ("5", "First \\boxed{4}, no: \\boxed{5}"),  # math-verify would read the set of 4 and 5
    ("5", "First \\boxed{4}, no: \\boxed{\\frac{10}{2}}"),
    ("4, 5", "Either \\boxed{4} or \\boxed{5}"),
    ("5", "$x = 5$"),
    ("\\boxed{7}", "\\boxed{7}"),  # a label may be a whole solution
]
WRONG = [
    ("\\frac{1}{2}", "\\boxed{\\frac{1}{3}}"),
    ("\\frac{1}{2}", "\\boxed{\\frac{2}{1}}"),
    ("5", "First \\boxed{5}, no: \\boxed{4}"),
    ("5", "\\boxed{}"),
    ("5", ""),
    ("5", "I do not know"),
    ("\\text{Evelyn}", "\\boxed{\\text{Carla}}"),
    ("\\left(3,\\frac{\\pi}{2}\\right)", "\\boxed{(3, \\pi)}"),
    ("\\{-2,3\\}", "\\boxed{\\{-2\\}}"),
    ("x^2-9", "\\boxed{x^2+9}"),
    ("10000", "\\boxed{1,000}"),
]


@pytest.mark.parametrize(("label", "answer"), RIGHT)
def test_right_answers(label: str, answer: str) -> None:
    score = get_task("math").score({"label": label}, answer)
    assert score["correct"] == 1, score


@pytest.mark.parametrize(("label", "answer"), WRONG)
def test_wrong_answers(label: str, answer: str) -> None:
    score = get_task("math").score({"label": label}, answer)
    assert score["correct"] == 0, score


@pytest.mark.parametrize(("label", "answer"), [case for case in RIGHT + WRONG if "no: " not in case[1]])
def test_it_agrees_with_math_verify(label: str, answer: str) -> None:
    from math_verify import parse, verify

    gold = parse(label if "boxed" in label else f"\\boxed{{{label}}}")
    assert get_task("math").score({"label": label}, answer)["correct"] == int(verify(gold, parse(answer)))


def test_threads_score_alike() -> None:
    task, scores = get_task("math"), []

    def work() -> None:
        scores.extend(task.score({"label": label}, answer)["correct"] for label, answer in RIGHT[:4] + WRONG[:4])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert scores == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("answer", "boxed"),
    [
        ("\\boxed{\\frac{a}{b}}", "\\frac{a}{b}"),
        ("\\boxed {x} and \\fbox{y}", "y"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2", "1"),  # the second never closes
        ("\\boxed{\\begin{pmatrix} 1 \\\\ {2} \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ {2} \\end{pmatrix}"),
        ("\\boxed{}", ""),
        ("none", None),
    ],
)
def test_last_boxed(answer: str, boxed: str | None) -> None:
    assert last_boxed(answer) == boxed


def test_prompt_and_entry() -> None:
    task = get_task("math")
    assert task.prompts({"prompt": "1+1?"}) == [f"1+1?\n\n{INSTRUCTION}"]
    assert task.prompts({"prompt": "1+1? Use \\boxed{}."}) == ["1+1? Use \\boxed{}."]
    bare = {"question_id": 1, "prompt": "p", "label": "2"}
    assert task.entry(bare) == bare | {"subject": "unspecified", "level": "unspecified"}
    assert task.entry(bare | {"subject": "Algebra", "level": 3, "solution": "s"})["level"] == "3"
