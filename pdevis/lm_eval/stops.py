"""The answer in a text that has ended: without reasoning, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pdevis.reasoning.split_reasoning import SplitText, split_reasoning


def cut_answer(text: str, stops: Sequence[str], think_end: str | None = None, opening: str = "") -> SplitText:
    """Divide a text, and end its answer at the start of the first stop string.

    Args:
        text: the whole text.
        stops: the stop strings.
        think_end: a further text that ends thoughts, for models whose tag is not known.
        opening: the tag with which the prompt has opened a thought.
    """
    split = split_reasoning(opening + text, end=think_end)
    end = min((found for stop in stops if (found := split.answer.find(stop)) >= 0), default=None)
    return replace(split, answer=split.answer[:end])
