"""Reasoning is no part of an answer, in any benchmark; a thought that does not end is no answer at all."""

from __future__ import annotations

from typing import Any

import pytest

from pdevis.benchmarks.tasks import get_task

WRONG = "Three birds, so the answer is A? Answer: 70 or \\boxed{70}."  # a wrong answer of each benchmark, with commas
TEXTS = {"mmlu": "C", "mgsm": "Answer: 71", "math": "The result is 71.", "ifeval": "Hello there", "wmt": "Hello there"}
ENTRIES: dict[str, dict[str, Any]] = {
    "mmlu": {"label": "C", "subject": "s"},
    "mgsm": {"label": 71, "language": "en"},
    "math": {"label": "71"},
    "ifeval": {"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "wmt": {"label": ["Hello there"]},
}


def score(benchmark: str, text: str) -> dict[str, Any]:
    return get_task(benchmark).score({"question_id": 1, **ENTRIES[benchmark]}, text)


@pytest.mark.parametrize("benchmark", ENTRIES)
@pytest.mark.parametrize("thought", [f"<think>\n{WRONG}\n</think>\n\n", f"{WRONG}\n</think>\n\n", "<think></think>\n"])
def test_the_answer_after_a_thought_is_scored(benchmark: str, thought: str) -> None:
    assert score(benchmark, thought + TEXTS[benchmark]) == score(benchmark, TEXTS[benchmark])


@pytest.mark.parametrize("benchmark", ENTRIES)
def test_a_right_answer_in_a_thought_does_not_count(benchmark: str) -> None:
    right = TEXTS[benchmark]
    assert score(benchmark, f"<think>{right}</think>{WRONG}") == score(benchmark, WRONG)
    assert score(benchmark, f"<think>\n{right}") == score(benchmark, "")


def test_nothing_counts_in_an_unfinished_thought() -> None:
    zero = {"mmlu": "correct", "mgsm": "correct_flexible", "math": "correct", "ifeval": "prompt_loose", "wmt": "chrf"}
    for benchmark, metric in zero.items():
        assert score(benchmark, TEXTS[benchmark])[metric] > 0
        assert score(benchmark, f"<think>\n{TEXTS[benchmark]}")[metric] == 0


def test_corpus_scores_and_the_comparison_of_translations_see_no_thoughts() -> None:
    task, entries = get_task("wmt"), [{"label": ["The cat sat on the mat today."]}] * 4
    bare = ["The cat sat on the mat today."] * 4
    with_thoughts = [f"<think>\nThe dog?\n</think>\n\n{text}" for text in bare]
    assert task.corpus(entries, with_thoughts, []) == task.corpus(entries, bare, [])
    assert task.compare(entries, bare, with_thoughts) == task.compare(entries, bare, bare)


def test_a_benchmark_of_speed_has_no_scores() -> None:
    assert get_task("specbench").score({"question_id": 1}, "<think>") == {}
