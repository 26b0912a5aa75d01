"""The answer in a text that has ended: without reasoning, and without what a stop string begins."""

from __future__ import annotations

from collections.abc import Sequence

from pdevis.reasoning.split_reasoning import split_reasoning


def cut_answer(text: str, stops: Sequence[str], think_end: str | None = None, opening: str = "") -> str:
    """Return the answer in a text, up to the start of the first stop string.

    Args:
        text: the whole text.
        stops: the stop strings.
        think_end: the text that ends a thought. Reasoning is left out of the answer, a thought that does not end is no
            answer, and stop strings count only after `think_end`. None: the whole text is the answer.
        opening: the tag with which the prompt has opened a thought.
    """
    answer = text if think_end is None else split_reasoning(opening + text, end=think_end).answer
    return answer[: min((found for stop in stops if (found := answer.find(stop)) >= 0), default=None)]
