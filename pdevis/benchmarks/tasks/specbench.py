"""SpecBench: questions of many kinds, some of two turns, to measure speed only: there is no quality metric."""

from __future__ import annotations

from pathlib import Path

from pdevis.benchmarks.tasks.items import Item, load_items, text, texts
from pdevis.benchmarks.tasks.task import Scores, Task


class SpecBench(Task):
    name = "specbench"
    gen_len = 256
    groups = ("category",)
    own_keys = ("prompt_text",)

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "category")
        texts(item, "turns")

    def prompts(self, item: Item) -> list[str]:
        """All turns; each is asked after the earlier ones and their answers."""
        return list(item["turns"])

    def entry(self, item: Item) -> Item:
        return {
            "question_id": item["question_id"],
            "category": item["category"],
            "prompt_text": "\n\n".join(item["turns"]),
        }

    def score_answer(self, entry: Item, answer: str) -> Scores:
        return {}
