"""Stop strings: a text ends with the token that completes one of them, as in transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from pdevis.reasoning.reasoning_stream import ReasoningStream
from pdevis.text import TextStream


class StopStrings:
    """Finds the first stop string in a growing text, also where it spans several tokens.

    Args:
        stops: the strings, not empty.
        tokenizer: of the text.
        thoughts: divides the text, whose answer alone may have stop strings; None: they count everywhere.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any, thoughts: ReasoningStream | None = None) -> None:
        self.stops = tuple(stops)
        self._stream = TextStream(tokenizer)
        self._thoughts = thoughts
        self._tail = ""  # of the text: what a string may begin in
        self._longest = max(map(len, self.stops))
        self._ids: list[int] = []  # all of them, if the tokenizer gives no text before the end

    def add(self, token: int) -> bool:
        """Append a token; return True if it completes a stop string."""
        if self._stream.is_local:
            text = self._tail + _answer(self._stream.add(token), self._thoughts)
        else:
            self._ids.append(token)
            text = _answer(self._stream.decode(self._ids), copy(self._thoughts))
        self._tail = text[-self._longest :]
        return any(stop in text for stop in self.stops)


def _answer(text: str, thoughts: ReasoningStream | None) -> str:
    """Return the part of a text that is no reasoning; all of it if it is not divided."""
    return text if thoughts is None else "".join(part.text for part in thoughts.add(text) if not part.is_reasoning)


def split_special(stops: Sequence[str], tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the stop strings that are text, and the ids of those that are special tokens and so never in the text."""
    special = {tokenizer.convert_ids_to_tokens(token): token for token in tokenizer.all_special_ids}
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = tuple(stop for stop in stops if stop not in special)
    return texts, tuple(special[stop] for stop in stops if stop in special)
