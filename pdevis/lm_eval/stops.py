"""Stop strings: a generation ends, and its text is truncated, at the start of the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdevis.text import GenerationStream


def split_stops(until: Sequence[str], tokenizer: Any) -> tuple[list[str], list[int]]:
    """Return the stop strings that are text, and the ids of those that are special tokens and so never in the text."""
    special = {tokenizer.convert_ids_to_tokens(token): token for token in tokenizer.all_special_ids}
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [stop for stop in until if stop and stop not in special]
    return texts, [special[stop] for stop in until if stop in special]


def read_until(stream: GenerationStream, stops: Sequence[str], think_end: str | None = None) -> str:
    """Return the text of a generation up to the first stop string, and end the generation there.

    Args:
        think_end: the text that ends the thinking. The text before it is left out, and stop strings count only after
            it.
    """
    text, thinking = "", think_end is not None
    longest = max(map(len, stops), default=0)
    for event in stream:
        search_start = max(0, len(text) - longest + 1)  # a stop string may begin in the text of earlier tokens
        text += event.text
        if think_end and thinking and think_end in text:
            thinking, search_start = False, 0
            text = text.partition(think_end)[2].lstrip()
        positions = [] if thinking else [text.find(stop, search_start) for stop in stops]
        hits = [position for position in positions if position >= 0]
        if hits:
            stream.close()
            return text[: min(hits)]
    return text
