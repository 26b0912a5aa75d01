"""Prompts to token ids, and token ids to text piece by piece, without breaking characters that span several tokens.

The decoders know token ids only: `GenerationStream` is the one place that gives their tokens a text.
"""

from __future__ import annotations

import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from numbers import Integral
from types import FrameType
from typing import Any, Protocol

from jinja2 import Environment

from pdevis.generation import DecodeStats, TokenEvent
from pdevis.reasoning.reasoning_stream import ReasoningStream
from pdevis.util.files import parse_json
from pdevis.util.validation import first_line

Message = dict[str, str]


class IdArray(Protocol):
    """A tensor or array of token ids, [T] or [1, T]."""

    @property
    def shape(self) -> Any: ...

    def tolist(self) -> Any: ...


Prompt = str | Sequence[Message] | Sequence[int] | IdArray
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from the first bytes of a character
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte of a character that is not in the vocabulary
CONTEXT = 16  # tokens
PROMPT_KINDS = 'must be a string, messages {"role": text, "content": text}, or token ids'
THINKING_SWITCH = "enable_thinking"  # of chat templates, such as Qwen3's
TEMPLATE_SECONDS = 5.0  # of CPU time; real templates need milliseconds
LOCAL_DECODERS = ("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece")


class PromptTooLongError(ValueError):
    """A prompt that leaves no space for an answer in the context of the model."""

    def __init__(self, tokens: int, context_length: int) -> None:
        super().__init__(f"prompt of {tokens} tokens: must be shorter than the context of {context_length} tokens")
        self.tokens = tokens
        self.context_length = context_length


class TextStream:
    """Turn a growing list of ids into pieces of text that add up to the text of all of them.

    The text of a token depends on its neighbours: a decoder drops the space that begins a text, joins the bytes of a
    character, or ends a word if another one follows. So a token is decoded together with those before it, the last 16
    to 32, which is more than any of the decoders in `decodes_locally` looks back. Text is held back if the next token
    may still change it: the first bytes of a character, and byte tokens as long as they follow each other, since one
    that is not UTF-8 makes all of them unreadable. They are decoded once, after the last of them.

    Special tokens are left out before anything else: in front of a word they would make it look like the first one.
    A tokenizer whose decoder is not in `decodes_locally` gives its whole text after the last token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.is_local = decodes_locally(tokenizer)  # else it gives text after the last token only
        added = tokenizer.added_tokens_decoder if self.is_local else {}
        self._special = {number for number, token in added.items() if token.special}
        self._ids: list[int] = []  # the last tokens; of a local decoder without special ones
        self._returned = 0  # letters of their text that have been returned

    def add(self, token: int, last: bool = False) -> str:
        """Return the text that `token` completes; after the `last` token also the text that is still held back."""
        name = self.tokenizer.convert_ids_to_tokens(token) if self.is_local else ""
        is_text = name is not None and token not in self._special
        if is_text:
            self._ids.append(token)
        if not last and (not is_text or not self.is_local or BYTE_TOKEN.fullmatch(name)):
            return ""
        text = self.decode(self._ids)
        complete = text if last else text.removesuffix(INCOMPLETE)
        piece, self._returned = complete[self._returned :], max(len(complete), self._returned)
        if self.is_local and len(self._ids) > 2 * CONTEXT:
            self._ids = self._ids[-CONTEXT:]
            self._returned = len(self.decode(self._ids).removesuffix(INCOMPLETE))
        return piece

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def decodes_locally(tokenizer: Any) -> bool:
    """Return True if the text of a token depends on the tokens next to it and on the start of the text only."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer)._decode.__module__ != "transformers.tokenization_utils_tokenizers":
        return False  # computed in Python by the tokenizer's own class
    if backend.decoder is None:
        return True  # spaces between tokens
    try:
        steps = _decoder_steps(parse_json(backend.decoder.__getstate__()))
    except Exception:  # a decoder written in Python has no state
        return False
    joined = False  # True if the next step receives the whole text instead of its tokens
    for step in steps:
        kind, pattern = step["type"], step.get("pattern", {}).get("String", "")
        if kind not in LOCAL_DECODERS or (kind == "Strip" and (step["start"] >= CONTEXT or step["stop"])):
            return False
        if joined and kind not in ("Fuse", "Strip") and not (kind == "Replace" and len(pattern) == 1):
            return False
        joined = joined or kind in ("Fuse", "ByteLevel")
    return True


def _decoder_steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _decoder_steps(part)]


class GenerationStream(Iterator[TokenEvent]):
    """A generation in progress: an iterator of `TokenEvent`, whose `ids`, `text` and `stats` grow with every token.

    Closing or abandoning it rewinds both caches; the confirmed tokens stay readable.

    Args:
        events: confirmed tokens without text, as the decoders yield them.
        stats: of this generation; the decoder updates them.
        tokenizer: of the model.
        on_end: called with the statistics when the generation has ended, however it did.
    """

    def __init__(
        self,
        events: Iterator[TokenEvent],
        stats: DecodeStats,
        tokenizer: Any,
        on_end: Callable[[DecodeStats], None] = lambda stats: None,
    ) -> None:
        self.stats = stats
        self._on_end = on_end
        self.ids: list[int] = []
        self._events = events
        self._detokenizer = TextStream(tokenizer)

    @property
    def text(self) -> str:
        """The text of all confirmed tokens, without special tokens."""
        return self._detokenizer.decode(self.ids)

    def __next__(self) -> TokenEvent:
        """Return the next confirmed token with the text that it completes."""
        try:
            event = next(self._events)
        except StopIteration:
            self._on_end(self.stats)
            raise
        self.ids.append(event.id)
        last = self.stats.stop_reason is not None and len(self.ids) == self.stats.new_tokens
        return replace(event, text=self._detokenizer.add(event.id, last=last))

    def close(self) -> None:
        """End the generation here."""
        self._events.close()
        self._on_end(self.stats)


def read_thoughts(ids: Sequence[int], tokenizer: Any, opening: str = "") -> ReasoningStream:
    """Return the division of a text that has been written.

    Args:
        ids: all new tokens.
        tokenizer: of the model.
        opening: as for `ReasoningStream`.
    """
    thoughts, text = ReasoningStream(opening), TextStream(tokenizer)
    if text.is_local:
        for number, token in enumerate(ids, 1):
            thoughts.add(text.add(token, last=number == len(ids)))
    else:  # its tokens have no text of their own: search for the one with which the last thought ends
        counts = range(1, len(ids))
        thoughts.add(text.decode(list(ids)))
        if thoughts.tokens:
            ends = bisect_left(counts, True, key=lambda count: _has_thought(text.decode(list(ids[:count])), opening))
            thoughts.tokens = ends + 1
    thoughts.finish()
    return thoughts


def _has_thought(text: str, opening: str) -> bool:
    """Return True if a text has a thought that has ended."""
    thoughts = ReasoningStream(opening)
    thoughts.add(text)
    return bool(thoughts.tokens) and not thoughts.is_thinking


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool, model: str) -> list[int]:
    """Return the token ids of a prompt; arguments and errors as for `SpeculativePair.encode`.

    Args:
        model: name of the model that the tokenizer belongs to, for messages.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"prompt = {prompt!r}: must not be empty")
        if not chat:
            return list(_tokenize(tokenizer, prompt))
        prompt = [{"role": "user", "content": prompt}]
    parts = _parts(prompt)
    if not parts:
        raise ValueError("prompt = []: must not be empty")
    if all(isinstance(part, Integral) for part in parts):
        return [int(part) for part in parts]
    for part in parts:
        if not isinstance(part, Mapping) or not all(isinstance(part.get(key), str) for key in ("role", "content")):
            raise ValueError(f"prompt has {part!r}: {PROMPT_KINDS}")
    if not tokenizer.chat_template:
        raise ValueError(f"{model} has no chat template: encode(text, chat=False), or --no-chat")
    return list(apply_chat_template(tokenizer, parts, add_generation_prompt=True, return_dict=False))


def _parts(prompt: Any) -> list[Any]:
    """Return the messages or ids of a prompt that is no text. Raises ValueError if it is of another kind."""
    shape = getattr(prompt, "shape", None)
    if shape is not None:  # a tensor or array
        if len(shape) == 2 and shape[0] == 1:
            prompt = prompt[0]
        elif len(shape) != 1:
            raise ValueError(f"prompt of shape {tuple(shape)}: must be token ids [T] or [1, T], of one sequence")
        return prompt.tolist()
    if not isinstance(prompt, Iterable) or isinstance(prompt, (bytes, Mapping)):
        raise ValueError(f"prompt = {prompt!r}: {PROMPT_KINDS}")
    return list(prompt)


def set_thinking(tokenizer: Any, on: bool | None) -> None:
    """Turn the thoughts of a model on or off in all prompts that this tokenizer's chat template makes from now on.

    Args:
        on: None: the template's own default.

    Raises:
        ValueError: the chat template has no such switch.
    """
    if on is None:
        tokenizer.template_options = {}
        return
    templates = tokenizer.chat_template
    texts = list(templates.values()) if isinstance(templates, dict) else [templates or ""]
    if not any(THINKING_SWITCH in text for text in texts):
        raise ValueError(f"thinking = {'on' if on else 'off'!r}: this model's chat template has no switch for thoughts")
    tokenizer.template_options = {THINKING_SWITCH: on}


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


def _tokenize(tokenizer: Any, text: str) -> Any:
    try:
        return tokenizer(text)["input_ids"]
    except (TypeError, ValueError) as error:  # such as half surrogate pairs
        raise ValueError(f"the tokenizer refuses this prompt: {first_line(error)}") from error


def apply_chat_template(tokenizer: Any, messages: list[Message], **options: Any) -> Any:
    """Return what the tokenizer's function of this name does, within `TEMPLATE_SECONDS`.

    A chat template is a program that comes with the model. transformers runs it in jinja's sandbox, which gives it no
    files and no long ranges; loops inside loops may still run for days.

    Raises:
        ValueError: the template refuses these messages, fails, needs too long, or has an operator that may need too
            long on its own.
    """
    templates = tokenizer.chat_template
    options = getattr(tokenizer, "template_options", {}) | options
    try:
        for template in templates.values() if isinstance(templates, dict) else [templates]:
            if isinstance(template, str) and _has_power(template):
                raise ValueError("the chat template has the operator **, which is not supported")
        with _cpu_limit(TEMPLATE_SECONDS):
            return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:  # a template can raise any error
        raise ValueError(f"the tokenizer refuses this prompt: {first_line(error)}") from error


@lru_cache
def _has_power(template: str) -> bool:
    """Return True if a template has the operator **: a single power can take hours, and no limit stops it."""
    return any(kind == "operator" and value == "**" for _, kind, value in Environment().lex(template))


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """End a template after this much CPU time, in any thread, at its next line or call of a function."""
    end = time.thread_time() + seconds

    def check(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise ValueError(f"its chat template needs more than {seconds:g} s")
        return check if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)
