"""SpecBench: all turns, and no quality metric; and the interface of all tasks."""

from __future__ import annotations

from pdevis.benchmarks.tasks import BENCHMARKS, get_task

ITEM = {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now another."], "reference": ["x", "y"]}


def test_turns_and_entry() -> None:
    task = get_task("specbench")
    assert task.prompts(ITEM) == ITEM["turns"]
    entry = task.entry(ITEM)
    assert entry == {"question_id": 81, "category": "writing", "prompt_text": "Write a line.\n\nNow another."}


def test_no_quality_metric() -> None:
    task = get_task("specbench")
    assert task.metrics == ()
    assert task.groups == ("category",)
    entry = task.entry(ITEM)
    assert task.score(entry, "x") == task.corpus([entry], ["x"], [{}]) == task.compare([entry], ["x"], ["y"]) == {}


def test_every_task_keeps_to_the_protocol() -> None:
    for name in BENCHMARKS:
        task = get_task(name)
        assert task.name == name
        assert isinstance(task.metrics, tuple)
        assert isinstance(task.groups, tuple)
        assert task.compare([], [], []) == {}
        assert task.corpus([], [], []) == {}
