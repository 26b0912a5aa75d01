"""Prompts to token ids, and token ids to text piece by piece, without breaking characters that span several tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

from jinja2 import TemplateError

from pdevis.generation import DecodeStats, TokenEvent

Message = dict[str, str]
Prompt = str | list[Message] | list[int]
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


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool, name: str) -> list[int]:
    """As `SpeculativePair.encode`; `name` is what to call the model that the tokenizer belongs to."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"prompt = {prompt!r}: must not be empty")
        if not chat:
            return list(_tokenize(tokenizer, prompt)["input_ids"])
        prompt = [{"role": "user", "content": prompt}]
    parts = list(prompt) if isinstance(prompt, Iterable) else [prompt]
    if not parts:
        raise ValueError("prompt = []: must not be empty")
    if all(isinstance(part, Integral) for part in parts):
        return [int(part) for part in parts]
    for part in parts:
        if not isinstance(part, Mapping) or not all(isinstance(part.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f'prompt has {part!r}: must be a string, messages {{"role": text, "content": text}}, or token ids'
            )
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template: encode(text, chat=False), or --no-chat")
    return list(_tokenize(tokenizer.apply_chat_template, parts, add_generation_prompt=True, return_dict=False))


def check_ids(ids: list[int], vocab_size: int, context_length: int) -> None:
    """Raise ValueError for ids that a model does not have, or more than it can read with room for an answer."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"prompt has id {token}: must be at least 0 and below {vocab_size}")
    if len(ids) >= context_length:
        raise ValueError(f"prompt of {len(ids)} tokens: must be shorter than the context of {context_length} tokens")


def _tokenize(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a tokenizer; what it does not take (broken text, roles its template refuses) is the user's to know."""
    try:
        return function(*args, **options)
    except (TypeError, ValueError, TemplateError) as error:
        raise ValueError(f"the tokenizer refuses this prompt: {error}") from error
