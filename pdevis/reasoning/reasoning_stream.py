"""Divide the text of a thinking model while it is written: what is reasoning, what is the answer, token by token.

    thoughts = ReasoningStream(prompt_opening(pair.tokenizer, ids))
    for event in pair.stream(ids):
        for part in thoughts.add(event.text):
            print(part.text, part.is_reasoning)
    rest = thoughts.finish()
    thoughts.split.answer, thoughts.split.reasoning, thoughts.tokens

Chat, evaluation, stop strings and lm_eval all divide with this class. A tag may begin in one token and end in another:
text that may become a tag is held back. A part that has been returned stays what it was called, so `split`, the
division of the whole text, is what counts. It differs from the parts in rare texts only: a closing tag without an
opening one in text or prompt, an answer before the last thought, tags around the answer, thoughts without tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex  # it can say that the end of a text may begin a match

from pdevis.reasoning.split_reasoning import BEGINNING, TAGS, SplitText, begins_a_line, opening_tag, split_reasoning

FORMS = (*TAGS, BEGINNING)
UNKNOWN = -1  # a thought whose opening tag is not known: any closing tag ends it
_BEGINNING = regex.compile(rf"\s*(?P<open{len(TAGS)}>{BEGINNING[0]})")
TAG_TOKENS = 24  # of a prompt's end, enough for a tag that opens a thought


@dataclass(frozen=True)
class Part:
    """A piece of text without tags, and whether it is reasoning or answer."""

    text: str
    is_reasoning: bool


@dataclass(frozen=True)
class _Tag:
    """A tag in the text that is held back; `opens` is its form, None for a closing tag. Or the beginning of one."""

    start: int
    length: int
    opens: int | None = None
    is_complete: bool = True


class ReasoningStream:
    """The division of a growing text.

    Args:
        opening: the tag with which the prompt has opened a thought (`prompt_opening`); empty: none.
        end: a further text that ends thoughts, for models whose tag is not known here.
        is_thinking: the text begins inside a thought, even if `opening` is empty.

    Attributes:
        opening: as given.
        text: `opening`, and all that the model wrote.
        tokens: number of tokens in thoughts, tags included.
        is_thinking: True inside a thought.
    """

    def __init__(self, opening: str = "", *, end: str | None = None, is_thinking: bool = False) -> None:
        self.opening = self.text = opening
        self.tokens = 0
        self._end = end
        self._form: int | None = UNKNOWN if is_thinking else None  # of the thought at this position
        if opening:
            self._form = next(i for i, (tag, _) in enumerate(FORMS) if regex.fullmatch(tag, opening))
        self._count = 0  # tokens so far
        self._undecided = 0  # of them, those that may belong to a tag that has not ended
        self._held = ""  # text that may become a tag
        self._line = opening  # the text before it, from the last line's start
        self._has_thought = self.is_thinking  # at this position or before
        self._is_blank = True  # nothing but blanks has been returned since the last tag
        self._blanks = ""  # held back: before the text, or at the end of the reasoning so far

    @property
    def is_thinking(self) -> bool:
        return self._form is not None

    @property
    def holds_text(self) -> bool:
        """True if the end of the text may become a tag."""
        return bool(self._held)

    @property
    def split(self) -> SplitText:
        """The division of the whole text."""
        return split_reasoning(self.text, end=self._end)

    def add(self, text: str) -> list[Part]:
        """Append the text of one token, which may be empty; return the parts that are certain by now."""
        self.text += text
        self._held += text
        self._count += 1
        self._undecided += 1
        counts = self.is_thinking
        parts: list[Part] = []
        while (tag := self._find_tag()) and tag.is_complete:
            self._take(tag.start, parts)
            self._apply(tag)
            counts = True
        self._take(tag.start if tag else len(self._held), parts)
        if counts:
            self.tokens += self._undecided
        if counts or not self._held:
            self._undecided = 0
        return parts

    def finish(self) -> list[Part]:
        """End the text; return what was held back."""
        parts: list[Part] = []
        self._take(len(self._held), parts)
        if self._blanks and not self._has_thought:
            parts.append(Part(self._blanks, is_reasoning=False))
        return parts

    def _find_tag(self) -> _Tag | None:
        """Return the next tag that counts, or what may become one; None if the text has none."""
        position = 0
        if self._is_blank and not self._has_thought:
            found = _BEGINNING.match(self._held, partial=True)
            if found and found.end():
                return _Tag(0, found.end(), _form_of(found), is_complete=not found.partial)
        while True:
            found = _tags(self._form, self._end).search(self._held, position, partial=True)
            if not found:
                return None
            start, position = found.span()
            if found.partial:
                return _Tag(start, position - start, is_complete=False)
            opens, line = _form_of(found), self._line + self._held
            start += len(self._line)
            if line[:start].endswith("`"):
                if position == len(self._held):
                    return _Tag(found.start(), len(found[0]), is_complete=False)
                if self._held[position] == "`":
                    continue  # a mention of the tag
            if opens is None or begins_a_line(line, start):
                return _Tag(found.start(), len(found[0]), opens)

    def _take(self, count: int, parts: list[Part]) -> None:
        """Move text that is no tag from what is held back to `parts`."""
        text, self._held = self._held[:count], self._held[count:]
        self._line = (self._line + text).rpartition("\n")[2]
        if self._is_blank and self._has_thought:
            text = text.lstrip()
        if self.is_thinking or self._is_blank:
            text = self._blanks + text
            self._blanks = text[len(text.rstrip()) :] if self.is_thinking or not text.strip() else ""
            text = text.removesuffix(self._blanks)
        if text:
            parts.append(Part(text, self.is_thinking))
            self._is_blank = False

    def _apply(self, tag: _Tag) -> None:
        """Step over a tag, which what is held back begins with, into a thought or out of it."""
        self._line = (self._line + self._held[: tag.length]).rpartition("\n")[2]
        self._held = self._held[tag.length :]
        if tag.opens is None and not self._has_thought:
            self.tokens, self._undecided = self._count, 0  # all that came before was a thought
        self._blanks = "\n" if tag.opens is not None and self._has_thought else ""  # between two thoughts
        self._form, self._has_thought, self._is_blank = tag.opens, True, True


def prompt_opening(tokenizer: Any, prompt: Sequence[int]) -> str:
    """Return the tag with which a prompt of token ids opens the thought of the answer; empty if it opens none.

    It is empty too if the closing tag is a special token: those are never part of a text.
    """
    opening = opening_tag(tokenizer.decode(list(prompt[-TAG_TOKENS:])))
    if opening:
        closing = next(closing for tag, closing in TAGS if regex.fullmatch(tag, opening))
        special = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
        if any(regex.fullmatch(closing, token) for token in special):
            return ""
    return opening


def _form_of(found: Any) -> int | None:
    return int(found.lastgroup.removeprefix("open")) if found.lastgroup else None


@lru_cache
def _tags(form: int | None, end: str | None) -> Any:
    """The pattern of the tags that count inside a thought of a form; form None: in the answer."""
    if form in (None, UNKNOWN):
        closings = [closing for _, closing in TAGS]
    else:
        closings = [FORMS[form][1]]
    openings = [rf"(?P<open{i}>{opening})" for i, (opening, _) in enumerate(TAGS)] if form is None else []
    return regex.compile("|".join([*openings, *closings, *([regex.escape(end)] if end else [])]))
