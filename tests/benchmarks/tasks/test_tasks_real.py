"""The loaders and scorers on items of the real benchmarks, if they exist (they are not part of the project)."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import ROOT
from helpers.evaluation import MULTI_TURN, score_corpus
from pdevis.benchmarks.tasks import get_task
from pdevis.benchmarks.tasks.ifeval import checkers
from pdevis.benchmarks.tasks.mgsm import LANGUAGES

FOLDER = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs the folder shared/data with the benchmarks' items")


def load(name: str, file: str) -> tuple[Any, list[dict[str, Any]]]:
    task = get_task(name)
    entries = [task.entry(item) for item in task.load(FOLDER / file)]
    assert entries
    return task, entries


def test_wmt() -> None:
    task, entries = load("wmt", "wmt.json")
    labels = [entry["label"][0] for entry in entries]
    assert all(task.score(entry, label)["chrf"] == 100 for entry, label in zip(entries, labels))
    right, shifted = score_corpus(task, entries, labels), score_corpus(task, entries, labels[1:] + labels[:1])
    assert right["BLEU"]["score"] == pytest.approx(100)
    assert shifted["BLEU"]["score"] < 5
    result = task.compare(entries, labels, [label.replace("the", "a") for label in labels])
    assert result["BLEU"]["significant"]


def test_mmlu() -> None:
    task, entries = load("mmlu", "mmlu.json")
    for entry in entries:
        line = next(line for line in entry["prompt"].splitlines() if line.startswith(f"{entry['label']}. "))
        for answer in (entry["label"], line, f"**{line}**", f"The answer is {line}", f"Answer: {entry['label']}"):
            assert task.score(entry, answer)["correct"] == 1, answer
        wrong = next(letter for letter in "ABCD" if letter != entry["label"])
        assert task.score(entry, f"{wrong}.")["correct"] == 0
    assert score_corpus(task, entries, ["A"] * len(entries))["accuracy_micro"]["score"] < 0.4


def test_mgsm() -> None:
    task, entries = load("mgsm", "mgsm.json")
    assert {entry["language"] for entry in entries} == set(LANGUAGES)
    for entry in entries:
        prefix, label = LANGUAGES[entry["language"]].prefix, entry["label"]
        assert task.score(entry, f"12 + 3\n{prefix}: {label}.")["correct"] == 1
        assert task.score(entry, f"{label}\n{prefix}: {label + 1}")["correct"] == 0
        assert task.score(entry, f"… {label}")["correct_flexible"] == 1
        assert len(task.prompts(entry)) == 1


def test_ifeval() -> None:
    task, entries = load("ifeval", "ifeval.json")
    process_results = checkers().process_results

    for entry, answer in zip(
        entries, ("Just a plain answer. It ends here.", "no", "A, B and *C*\n\n<<D>>") * len(entries)
    ):
        if "#" in str(entry["kwargs"]):
            continue
        ours, official = task.score(entry, answer), process_results({"key": 1, **entry}, [answer])
        assert ours["followed_strict"] == official["inst_level_strict_acc"]
        assert ours["followed_loose"] == official["inst_level_loose_acc"]
    result = score_corpus(task, entries, ["Just a plain answer. It ends here."] * len(entries))
    assert 0 < result["prompt_strict"]["score"] <= result["prompt_loose"]["score"] < 0.5


def test_specbench() -> None:
    task = get_task("specbench")
    items = task.load(FOLDER / "Specbench_filtered.jsonl")
    for item in items:
        assert len(task.prompts(item)) == (2 if item["category"] in MULTI_TURN else 1)
        assert item["turns"][0] in task.entry(item)["prompt_text"]
