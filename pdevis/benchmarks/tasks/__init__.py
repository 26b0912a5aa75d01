"""The benchmarks: their items, their prompts, and the scoring of answers. None of it needs a model.

task = get_task("mmlu")
item = task.load(Path("Data/samples/mmlu.json"))[0]
task.score(task.entry(item), "The answer is C.")  # {"correct": 1, "extracted": "C"}
"""

from __future__ import annotations

from importlib import import_module

from pdevis.benchmarks.tasks.items import Item
from pdevis.benchmarks.tasks.task import Scores, Task

__all__ = ["BENCHMARKS", "Item", "Scores", "Task", "get_task"]

_CLASSES = {
    "wmt": "Wmt",
    "mmlu": "Mmlu",
    "mgsm": "Mgsm",
    "math": "Math",
    "ifeval": "IfEval",
    "specbench": "SpecBench",
}
BENCHMARKS = tuple(_CLASSES)


def get_task(name: str) -> Task:
    """The task of this name. Raises ValueError for an unknown one."""
    if name not in _CLASSES:
        raise ValueError(f"benchmark = {name!r}: must be one of {', '.join(BENCHMARKS)}")
    return getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])()
