"""MMLU: multiple choice with four options, scored by the first option that an answer names."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, one_of, text

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
    """The prompt of one question with its four choices."""
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
    """The first option that an answer names; None where it names none.

    An option at the very beginning counts ("C. True, False"), unless all options are repeated there; then one that is
    stated ("the answer is C"); then the first letter that stands alone and is not the article A.
    """
    answer = unicodedata.normalize("NFKC", answer).strip()
    if whole := _LOWER.fullmatch(answer):
        return whole[1].upper()
    leading = _LEADING.match(answer) or _WORDED.match(answer)
    if leading and not _repeats_options(answer, leading[1]):
        return leading[1]
    for pattern in (_STATED, _ALONE):
        for found in pattern.finditer(answer):
            if found[1] != "A" or _AFTER_OPTION.match(answer, found.end()):
                return found[1].upper()
    return None


def _repeats_options(answer: str, first: str) -> bool:
    """Whether the answer begins by listing several options, each on its line."""
    others = "".join(letter for letter in OPTIONS if letter != first)
    return re.search(rf"^[\s*(]*[{others}][.):]\s", answer, re.M) is not None


class Mmlu:
    name = "mmlu"
    metrics = ("correct",)
    groups = ("subject",)

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

    def score(self, entry: Item, text: str) -> dict[str, Any]:
        option = extract_option(text)
        return {"correct": int(option == entry["label"]), "extracted": option}

    def corpus(self, entries: list[Item], texts: list[str]) -> dict[str, Any]:
        """Accuracy over all questions (micro) and its mean over subjects (macro)."""
        if not entries:
            return {}
        subjects: dict[str, list[int]] = {}
        for entry, answer in zip(entries, texts):
            subjects.setdefault(entry["subject"], []).append(self.score(entry, answer)["correct"])
        shares = [sum(each) / len(each) for each in subjects.values()]
        rights = [right for each in subjects.values() for right in each]
        signature = f"first-option|questions:{len(rights)}|subjects:{len(shares)}"
        return {
            "accuracy_micro": {"score": sum(rights) / len(rights), "signature": signature},
            "accuracy_macro": {"score": sum(shares) / len(shares), "signature": signature},
        }

    def compare(self, entries: list[Item], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        return {}
