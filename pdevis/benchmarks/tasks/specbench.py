"""SpecBench: questions of many kinds, some of two turns, for speed alone: there is no quality metric.

The first eight categories are the multi-turn group that Spec-Bench reports together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, text, texts

MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
MULTI_TURN_GROUP = "multi-turn"


def group(category: str) -> str:
    """The group that Spec-Bench counts a category in: the multi-turn group, or the category itself."""
    return MULTI_TURN_GROUP if category in MULTI_TURN else category


class SpecBench:
    name = "specbench"
    metrics: tuple[str, ...] = ()
    groups = ("category",)

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "category")
        texts(item, "turns")

    def prompts(self, item: Item) -> list[str]:
        """All turns; each is asked with the earlier ones and their answers before it."""
        return list(item["turns"])

    def entry(self, item: Item) -> Item:
        return {
            "question_id": item["question_id"],
            "category": item["category"],
            "prompt_text": "\n\n".join(item["turns"]),
        }

    def score(self, entry: Item, text: str) -> dict[str, Any]:
        return {}

    def corpus(self, entries: list[Item], texts: list[str]) -> dict[str, Any]:
        return {}

    def compare(self, entries: list[Item], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        return {}
