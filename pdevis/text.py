"""Prompts to token ids, and token ids to text piece by piece, without breaking characters that span several tokens.

The decoders know token ids only: `GenerationStream` is the one place that gives their tokens a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

from jinja2 import TemplateError

from pdevis.generation import DecodeStats, TokenEvent

Message = dict[str, str]
Prompt = str | list[Message] | list[int]
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from the first bytes of a character


class PromptTooLongError(ValueError):
    """A prompt that leaves no space for an answer in the context of the model."""

    def __init__(self, tokens: int, context_length: int) -> None:
        super().__init__(f"prompt of {tokens} tokens: must be shorter than the context of {context_length} tokens")
        self.tokens = tokens
        self.context_length = context_length


class StreamingDetokenizer:
    """Turn a growing list of ids into pieces of text that add up to the text of all of them.

    A piece is decoded together with the one before it, since tokenizers treat the start of a text in a special way;
    and it is held back while it ends inside a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded again
        self._emitted = 0  # the text of the ids before this one has been returned

    def add(self, token: int, last: bool = False) -> str:
        """Return the text that `token` completes; after the `last` token also the text that is still held back."""
        self._ids.append(token)
        before = self.decode(self._ids[self._context : self._emitted])
        after = self.decode(self._ids[self._context :])
        if (after.endswith(INCOMPLETE) and not last) or len(after) < len(before):
            return ""
        self._context, self._emitted = self._emitted, len(self._ids)
        return after[len(before) :]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class GenerationStream(Iterator[TokenEvent]):
    """A generation in progress: an iterator of `TokenEvent`, whose `ids`, `text` and `stats` grow with every token.

    Closing or abandoning it rewinds both caches; the confirmed tokens stay readable.

    Args:
        events: confirmed tokens without text, as the decoders yield them.
        stats: of this generation; the decoder updates them.
    """

    def __init__(self, events: Iterator[TokenEvent], stats: DecodeStats, tokenizer: Any) -> None:
        self.stats = stats
        self.ids: list[int] = []
        self._events = events
        self._detokenizer = StreamingDetokenizer(tokenizer)

    @property
    def text(self) -> str:
        """The text of all confirmed tokens, without special tokens."""
        return self._detokenizer.decode(self.ids)

    def __next__(self) -> TokenEvent:
        """Return the next confirmed token with the text that it completes."""
        event = next(self._events)
        self.ids.append(event.id)
        last = self.stats.stop_reason is not None and len(self.ids) == self.stats.new_tokens
        return replace(event, text=self._detokenizer.add(event.id, last=last))

    def close(self) -> None:
        """End the generation here."""
        self._events.close()


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool, model: str) -> list[int]:
    """Return the token ids of a prompt; arguments and errors as for `SpeculativePair.encode`.

    Args:
        model: name of the model that the tokenizer belongs to, for messages.
    """
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
        raise ValueError(f"{model} has no chat template: encode(text, chat=False), or --no-chat")
    return list(_tokenize(tokenizer.apply_chat_template, parts, add_generation_prompt=True, return_dict=False))


def check_ids(ids: list[int], vocab_size: int, context_length: int) -> None:
    """Check that a model can continue a prompt.

    Raises:
        ValueError: for an id outside the vocabulary. PromptTooLongError: the context has no space for an answer.
    """
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"prompt has id {token}: must be at least 0 and below {vocab_size}")
    if len(ids) >= context_length:
        raise PromptTooLongError(len(ids), context_length)


def _tokenize(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a tokenizer. Raise ValueError for what it refuses: broken text, roles that its template does not have."""
    try:
        return function(*args, **options)
    except (TypeError, ValueError, TemplateError) as error:
        raise ValueError(f"the tokenizer refuses this prompt: {error}") from error
