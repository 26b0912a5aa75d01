"""Token ids to text, piece by piece, without breaking characters that span several tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pdevis.records import DecodeStats, TokenEvent

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding makes of the first bytes of a character


class TextStream:
    """Turns a growing list of ids into pieces of text that add up to the text of all of them.

    A piece is decoded together with the one before it, since tokenizers treat the start of a text in a special way;
    and it is held back while it ends inside a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded again
        self._shown = 0  # ids before this one have been given out

    def add(self, token: int, last: bool = False) -> str:
        """The text that `token` completes; `last` gives out what is still held back."""
        self._ids.append(token)
        before = self.whole(self._ids[self._context : self._shown])
        after = self.whole(self._ids[self._context :])
        if (after.endswith(UNFINISHED) and not last) or len(after) < len(before):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def whole(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Stream(Iterator[TokenEvent]):
    """One generation in progress: an iterator of `TokenEvent`; `ids`, `text` and `stats` grow along.

    Closing or abandoning it rewinds both caches; what was confirmed stays readable.
    """

    def __init__(self, events: Iterator[TokenEvent], stats: DecodeStats, tokenizer: Any) -> None:
        self.stats = stats
        self.ids: list[int] = []
        self._events = events
        self._text = TextStream(tokenizer)

    @property
    def text(self) -> str:
        """The text of all confirmed tokens, without special tokens."""
        return self._text.whole(self.ids)

    def __next__(self) -> TokenEvent:
        event = next(self._events)
        self.ids.append(event.id)
        ended = self.stats.stop_reason is not None and len(self.ids) == self.stats.new_tokens
        return replace(event, text=self._text.add(event.id, last=ended))

    def close(self) -> None:
        self._events.close()
