"""Data/samples: valid, scored, and covering every kind of item."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from helpers import ROOT
from helpers.evaluation import MULTI_TURN
from pdevis.benchmarks.tasks import BENCHMARKS, get_task
from pdevis.benchmarks.tasks.mgsm import LANGUAGES

SAMPLES = {
    name: ROOT / "Data" / "samples" / f"{name}.{'jsonl' if name == 'specbench' else 'json'}" for name in BENCHMARKS
}
IF_ANY = ("prompt_strict", "prompt_loose")  # a question mark has no comma and few words: some instructions are met


@pytest.mark.parametrize("name", BENCHMARKS)
def test_samples_are_valid(name: str) -> None:
    task = get_task(name)
    items = task.load(SAMPLES[name])
    assert len(items) >= 12
    assert task.load(SAMPLES[name], k=5) == items[:5]
    assert len(task.load(SAMPLES[name], k=1000)) == len(items)
    for item in items:
        prompts = task.prompts(item)
        assert prompts
        assert all(prompt.strip() for prompt in prompts)
        entry = task.entry(item)
        assert next(iter(entry)) == "question_id"
        assert all(key in entry for key in task.groups)
        json.dumps(entry)


def test_samples_cover_what_they_must() -> None:
    def count(name: str, key: str) -> Counter:
        return Counter(item[key] for item in get_task(name).load(SAMPLES[name]))

    assert len(count("mgsm", "language")) == 11
    assert len(count("mmlu", "subject")) >= 4
    assert set(count("mmlu", "label")) == set("ABCD")
    assert len(count("math", "subject")) == 7
    categories = count("specbench", "category")
    assert set(MULTI_TURN) < set(categories)
    assert {"translation", "summarization", "qa", "math_reasoning", "rag"} < set(categories)
    turns = {len(item["turns"]) for item in get_task("specbench").load(SAMPLES["specbench"])}
    assert turns == {1, 2}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_samples_are_scored(name: str) -> None:
    """Every sample's own label is a right answer, and an answer beside the point is a wrong one."""
    task = get_task(name)
    for entry in (task.entry(item) for item in task.load(SAMPLES[name])):
        right = {
            "wmt": lambda entry: entry["label"][0],
            "mgsm": lambda entry: f"{LANGUAGES[entry['language']].prefix}: {entry['label']}",
            "math": lambda entry: f"\\boxed{{{entry['label']}}}",
        }.get(name, lambda entry: entry.get("label", ""))(entry)
        score = task.score(entry, right)
        assert set(task.metrics) <= set(score)
        assert all(isinstance(score[metric], (int, float)) for metric in task.metrics)
        if name in ("wmt", "mmlu", "mgsm", "math"):
            assert score[task.metrics[0]] == pytest.approx(100 if name == "wmt" else 1), entry
        assert all(task.score(entry, "?")[metric] < 1 for metric in task.metrics if metric not in ("ter", *IF_ANY))
