"""Stop strings: a generation ends, and its text is cut, where the first of them begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdevis.text import Stream


def split_stops(until: Sequence[str], tokenizer: Any) -> tuple[list[str], list[int]]:
    """Stop strings that are text, and the ids of those that are special tokens, which never show up in the text."""
    special = {tokenizer.convert_ids_to_tokens(token): token for token in tokenizer.all_special_ids}
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [stop for stop in until if stop and stop not in special]
    return texts, [special[stop] for stop in until if stop in special]


def read_until(stream: Stream, stops: Sequence[str], think_end: str | None = None) -> str:
    """The text of a generation up to the first stop string; ends the generation there.

    Args:
        think_end: where thinking ends. What stands before it is left out, and stop strings count only behind it.
    """
    text, thinking = "", think_end is not None
    longest = max(map(len, stops), default=0)
    for event in stream:
        fresh = max(0, len(text) - longest + 1)  # a stop string may begin in text that was there before
        text += event.text
        if think_end and thinking and think_end in text:
            thinking, fresh = False, 0
            text = text.partition(think_end)[2].lstrip()
        found = [] if thinking else [place for stop in stops if (place := text.find(stop, fresh)) >= 0]
        if found:
            stream.close()
            return text[: min(found)]
    return text
