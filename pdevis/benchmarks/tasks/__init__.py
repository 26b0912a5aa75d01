"""The benchmarks: their items, their prompts, and the scoring of answers. No model is needed for any of it.

task = get_task("mmlu")
item = task.load(Path("Data/samples/mmlu.json"))[0]
task.score(task.entry(item), "The answer is C.")  # {"correct": 1, "extracted": "C"}
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

BENCHMARKS = ("wmt", "mmlu", "mgsm", "math", "ifeval", "specbench")


class Task(Protocol):
    """One benchmark. `entry` turns an item into the task's own keys of a result entry; scoring reads only those.

    Attributes:
        name: one of `BENCHMARKS`.
        metrics: keys of `score` that are numbers and may be averaged over questions, the headline one first.
        groups: keys of an entry that results are reported by.
    """

    name: str
    metrics: tuple[str, ...]
    groups: tuple[str, ...]

    def load(self, path: Path, k: int | None = None) -> list[dict[str, Any]]:
        """The first k items (None: all) of a file that holds a JSON array or JSON lines; every item is checked.

        Raises:
            ValueError: naming the file, the item or line, what is wrong with it and what is allowed.
        """
        ...

    def prompts(self, item: dict[str, Any]) -> list[str]:
        """The user's turns: one, but all of them for SpecBench."""
        ...

    def entry(self, item: dict[str, Any]) -> dict[str, Any]: ...

    def score(self, entry: dict[str, Any], text: str) -> dict[str, Any]:
        """What one answer is worth: a number for each of `metrics`, and what it rests on (such as `extracted`)."""
        ...

    def corpus(self, entries: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
        """Metrics that exist for all answers together only: {name: {"score": number, "signature": str}}, or {}."""
        ...

    def compare(self, entries: list[dict[str, Any]], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        """Whether quality differs: {name: {"target", "other", "difference", "p_value", "significant", …}}, or {}."""
        ...


_HOMES = {"wmt": "Wmt", "mmlu": "Mmlu", "mgsm": "Mgsm", "math": "Math", "ifeval": "IfEval", "specbench": "SpecBench"}


def get_task(name: str) -> Task:
    """The benchmark of that name. Raises ValueError for an unknown one."""
    if name not in _HOMES:
        raise ValueError(f"benchmark = {name!r}: must be one of {', '.join(BENCHMARKS)}")
    return getattr(import_module(f"{__name__}.{name}"), _HOMES[name])()
