"""Stop strings: a generation ends, and its text is truncated, at the start of the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdevis.reasoning.split_reasoning import split_reasoning
from pdevis.text import GenerationStream


def split_stops(until: Sequence[str], tokenizer: Any) -> tuple[list[str], list[int]]:
    """Return the stop strings that are text, and the ids of those that are special tokens and so never in the text."""
    special = {tokenizer.convert_ids_to_tokens(token): token for token in tokenizer.all_special_ids}
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [stop for stop in until if stop and stop not in special]
    return texts, [special[stop] for stop in until if stop in special]


def read_until(stream: GenerationStream, stops: Sequence[str], think_end: str | None = None, opening: str = "") -> str:
    """Return the answer in a generation up to the first stop string, and end the generation there.

    Args:
        think_end: the text that ends a thought. Reasoning is left out of the answer, a thought that does not end is no
            answer, and stop strings count only after `think_end`. None: the whole text is the answer.
        opening: the tag with which the prompt has opened a thought.
    """
    text, shown = "", ""  # shown: the answer so far
    longest = max(map(len, stops), default=0)
    for event in stream:
        search_start = max(0, len(shown) - longest + 1)  # a stop string may begin in the text of earlier tokens
        text += event.text
        shown = text if think_end is None else text.partition(think_end)[2].lstrip()
        if _find_stop(shown, stops, search_start) is not None:
            stream.close()
            break
    answer = text if think_end is None else split_reasoning(opening + text, end=think_end).answer
    return answer[: _find_stop(answer, stops)]


def _find_stop(text: str, stops: Sequence[str], start: int = 0) -> int | None:
    """Position of the first stop string in a text."""
    return min((found for stop in stops if (found := text.find(stop, start)) >= 0), default=None)
