"""What the contestants of the speed comparison continue: built-in prompts, or first turns of SpecBench questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from pdevis.benchmarks.tasks.specbench import SpecBench
from pdevis.util.prompts import PROMPTS


@dataclass(frozen=True)
class SpeedPrompt:
    """A text, and where it comes from; None: it is built in."""

    text: str
    category: str | None = None
    question_id: int | str | None = None


def builtin_prompts(count: int) -> list[SpeedPrompt]:
    """The first `count` built-in prompts. Raises ValueError where there are fewer."""
    if count > len(PROMPTS):
        raise ValueError(f"--prompts: {count} must be at most {len(PROMPTS)}, the built-in prompts")
    return [SpeedPrompt(text) for text in PROMPTS[:count]]


def specbench_prompts(path: Path, categories: Sequence[str] | None, count: int) -> list[SpeedPrompt]:
    """The first turns of questions of a SpecBench file, the categories taking turns.

    Args:
        path: JSON lines or a JSON array.
        categories: which; None: all of the file.
        count: at most so many.

    Raises:
        ValueError: for a file that is broken or missing, or a category that it does not have.
    """
    groups: dict[str, list[SpeedPrompt]] = {}
    for item in SpecBench().load(path):
        prompt = SpeedPrompt(item["turns"][0], item["category"], item["question_id"])
        groups.setdefault(item["category"], []).append(prompt)
    wanted = list(dict.fromkeys(categories)) if categories is not None else list(groups)
    for name in wanted:
        if name not in groups:
            raise ValueError(f"--categories: {name!r} must be among {', '.join(groups)}")
    rows = zip_longest(*(groups[name] for name in wanted))
    return [prompt for prompt in chain.from_iterable(rows) if prompt is not None][:count]
