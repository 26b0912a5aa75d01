"""The interface of a benchmark task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pdevis.benchmarks.tasks.items import Item
from pdevis.reasoning.split_reasoning import split_reasoning

Scores = dict[str, Any]  # of one answer: a number for each of the task's metrics, and what it is based on


class Task(Protocol):
    """One benchmark. `entry` turns an item into the task's own keys of a result entry; scoring reads only those.

    A task defines `score_answer`, which sees no reasoning: `score` takes it off first.

    Attributes:
        name: one of `BENCHMARKS`.
        gen_len: default limit on new tokens per answer.
        metrics: keys of `score` that are numbers and may be averaged over questions, the main one first.
        lower_is_better: those of `metrics` that are errors.
        groups: keys of an entry that results are reported by.
        own_keys: keys of an entry by which result files without a meta file are told from other benchmarks' files.
    """

    name: str
    gen_len: int = 128
    metrics: tuple[str, ...] = ()
    lower_is_better: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    own_keys: tuple[str, ...] = ()

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        """Load the first k items (None: all) of a file that holds a JSON array or JSON lines; every item is checked.

        Raises:
            ValueError: names the file, the item or line, what is wrong with it and what is allowed.
        """
        ...

    def prompts(self, item: Item) -> list[str]:
        """The user's turns: one for every task but SpecBench."""
        ...

    def entry(self, item: Item) -> dict[str, Any]:
        """The task's own keys of a result entry, question_id first."""
        ...

    def score_answer(self, entry: dict[str, Any], answer: str) -> Scores:
        """Score one answer: a number for each of `metrics`, and what it is based on (such as `extracted`)."""
        ...

    def score(self, entry: dict[str, Any], text: str) -> Scores:
        """Score the answer in a text of a model, which may begin with reasoning. An unfinished thought is no answer."""
        return self.score_answer(entry, split_reasoning(text).answer)

    def corpus(
        self, entries: Sequence[dict[str, Any]], texts: Sequence[str], scores: Sequence[Scores]
    ) -> dict[str, Any]:
        """Metrics that exist only for all answers together: {name: {"score": number, "signature": str}}.

        Args:
            texts: of a model, reasoning included.
            scores: result of `score` for each entry and text.
        """
        return {}

    def compare(
        self, entries: Sequence[dict[str, Any]], target_texts: Sequence[str], other_texts: Sequence[str]
    ) -> dict[str, Any]:
        """Test for a difference in quality: {name: {"target", "other", "difference", "p_value", "significant", …}}."""
        return {}
