"""MMLU: multiple choice with four options, scored by the first option that an answer names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, one_of, text
from pdevis.benchmarks.tasks.task import Scores, Task

OPTIONS = ("A", "B", "C", "D")

_OPEN = r"[\s*_`\"'“‘(\[{$]*(?:\\(?:boxed|text|textbf|mathrm)\s*\{\s*)*"  # markdown, quotes, brackets, LaTeX
_LEADING = re.compile(rf"{_OPEN}([A-D])(?=[\s*_`\"'”’)\]}}$]*(?:[.,:;)\]}}!?…]|[-–—=]|\n|$))")
_WORDED = re.compile(rf"{_OPEN}(?i:option|choice|answer)\s+{_OPEN}([A-D])\b(?!['’])")
_LOWER = re.compile(r"[\s*_`\"'(\[{$]*([a-d])[\s*_`\"')\]}.:$]*")
_STATED = re.compile(
    r"(?i:answer|option|choice|correct(?:\s+one)?|solution)\b[\s*_`\"']*"
    rf"(?:(?i:is|are|was|would\s+be|should\s+be|must\s+be)\b\s*(?i:option|choice|answer)?|[:：=]|->|→)\s*[:：]?{_OPEN}"
    r"(?i:option\s+|choice\s+)?[\s*_`\"'(\[]*"
    r"([A-D](?![\w'’])|[a-d](?=[\s*_`\"')\]}.$]*(?:\n|$)))"
)
_ALONE = re.compile(r"(?<![\w'’.])([A-D])(?![\w'’])")
_AFTER_OPTION = re.compile(
    r"\s+(?:is|was|are|and|or|because|since|as|would|seems|must|should|for|here|–|—|-)\b|\s*[^\s\w]|\s*$"
)


def format_question(question: str, choices: list[str]) -> str:
    """Prompt of one question with its four choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, choices, strict=True)]
    return "\n".join(
        [
            "Choose the right option and reply with its letter only: A, B, C or D.",
            "",
            question,
            "",
            *lines,
            "",
            "Answer:",
        ]
    )


def extract_option(answer: str) -> str | None:
    """The first option that an answer names; None if it names none.

    An option at the very beginning counts ("C. True, False"), unless all options are repeated there; next, one that is
    stated ("the answer is C"); last, the first letter that is a word of its own and not the article A.
    """
    answer = unicodedata.normalize("NFKC", answer).strip()
    if whole := _LOWER.fullmatch(answer):
        return whole[1].upper()
    leading = _LEADING.match(answer) or _WORDED.match(answer)
    if leading and not _repeats_options(answer, leading[1]):
        return leading[1]
    for pattern in (_STATED, _ALONE):
        for match in pattern.finditer(answer):
            if match[1] != "A" or _AFTER_OPTION.match(answer, match.end()):
                return match[1].upper()
    return None


def _repeats_options(answer: str, first: str) -> bool:
    """True if the answer begins by listing several options, each on its own line."""
    others = "".join(letter for letter in OPTIONS if letter != first)
    return re.search(rf"^[\s*(]*[{others}][.):]\s", answer, re.M) is not None


class Mmlu(Task):
    name = "mmlu"
    gen_len = 16
    metrics = ("correct",)
    groups = ("subject",)
    own_keys = groups

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        text(item, "subject")
        one_of(item, "label", OPTIONS)

    def prompts(self, item: Item) -> list[str]:
        return [item["prompt"]]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label", "subject")}

    def score(self, entry: Item, text: str) -> Scores:
        option = extract_option(text)
        return {"correct": int(option == entry["label"]), "extracted": option}

    def corpus(self, entries: Sequence[Item], texts: Sequence[str], scores: Sequence[Scores]) -> dict[str, Any]:
        """Accuracy over all questions (micro) and its mean over subjects (macro)."""
        if not entries:
            return {}
        subjects: dict[str, list[int]] = {}
        for entry, score in zip(entries, scores):
            subjects.setdefault(entry["subject"], []).append(score["correct"])
        accuracies = [sum(correct) / len(correct) for correct in subjects.values()]
        micro = sum(score["correct"] for score in scores) / len(scores)
        signature = f"first-option|questions:{len(scores)}|subjects:{len(accuracies)}"
        return {
            "accuracy_micro": {"score": micro, "signature": signature},
            "accuracy_macro": {"score": sum(accuracies) / len(accuracies), "signature": signature},
        }
