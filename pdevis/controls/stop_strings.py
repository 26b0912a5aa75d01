"""Stop strings: a text ends with the token that completes one of them, as in transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdevis.text import TextStream


class StopStrings:
    """Finds the first stop string in a growing text, also where it spans several tokens.

    Args:
        stops: the strings, not empty.
        tokenizer: of the text.
        after: stop strings count only after this string, such as the tag that ends a thought, and the blanks that
            follow it; None: everywhere.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any, after: str | None = None) -> None:
        self.stops = tuple(stops)
        self._stream = TextStream(tokenizer)
        self._after = after
        self._follows_tag = False  # nothing but blanks has come since `after`
        self._tail = ""  # of the text: what a string may begin in
        self._longest = max(map(len, (*self.stops, after or "")))
        self._ids: list[int] = []  # all of them, if the tokenizer gives no text before the end

    def add(self, token: int) -> bool:
        """Append a token; return True if it completes a stop string."""
        if not self._stream.is_local:
            self._ids.append(token)
            text = self._stream.decode(self._ids)
            text = text if self._after is None else text.partition(self._after)[2].lstrip()
            return any(stop in text for stop in self.stops)
        self._tail += self._stream.add(token)
        if self._after is not None:
            _, tag, rest = self._tail.partition(self._after)
            if not tag:
                self._tail = self._tail[-self._longest :]
                return False
            self._tail, self._after, self._follows_tag = rest, None, True
        if self._follows_tag:
            self._tail = self._tail.lstrip()
            self._follows_tag = not self._tail
        found = any(stop in self._tail for stop in self.stops)
        self._tail = self._tail[-self._longest :]
        return found


def split_special(stops: Sequence[str], tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the stop strings that are text, and the ids of those that are special tokens and so never in the text."""
    special = {tokenizer.convert_ids_to_tokens(token): token for token in tokenizer.all_special_ids}
    special |= {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = tuple(stop for stop in stops if stop not in special)
    return texts, tuple(special[stop] for stop in stops if stop in special)
