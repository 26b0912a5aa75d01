"""Markdown on a terminal: written as it arrives, and replaced by its rendering block by block, as each is complete.

A block is a paragraph, a heading, a list, a table, a code block. Blocks and not the whole answer, because only what is
still on the screen can be replaced. Text is never lost: a block stays as the model wrote it if it is taller than the
screen, if the screen has changed its size, or if its rendering lacks letters of it (HTML, images). A paragraph without
Markdown stays too, with the colours of its tokens.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown, TableElement
from rich.segment import Segment, Segments
from rich.syntax import Syntax

from pdevis.chat.screen.word_wrap import WordWrap

PLAIN = ("text", "softbreak", "hardbreak", "text_special")  # parts of a paragraph that look the same when rendered


class _Table(TableElement):
    """A table whose cells break words that are longer than a column, instead of cutting them off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            for column in table.columns:
                column.overflow = "fold"
            yield table


class _Code(CodeBlock):
    """Code without margins, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=self.theme, word_wrap=True)


class _Markdown(Markdown):
    elements: ClassVar[dict[str, Any]] = {
        **Markdown.elements,
        "table_open": _Table,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)  # addresses are shown: not every terminal has hyperlinks


@dataclass(frozen=True)
class Block:
    """Lines of a text, from `first` to before `last`, that are one block, and their Markdown tokens."""

    first: int
    last: int
    tokens: Sequence[Any]

    @property
    def is_plain(self) -> bool:
        """True for a paragraph without Markdown, and for definitions of links, which have no tokens."""
        kinds = [part.type for token in self.tokens for part in token.children or []]
        is_paragraph = not self.tokens or self.tokens[0].type == "paragraph_open"
        return is_paragraph and all(kind in PLAIN for kind in kinds)


def find_blocks(text: str) -> list[Block]:
    """Return the blocks of a text. Lines that are in none of them are blank."""
    blocks: list[Block] = []
    tokens, lines, start, line = _Markdown(text).parsed, text.split("\n"), 0, 0

    def add_definitions(end: int) -> None:
        """Add a block for lines between two others, up to `end`, that are not blank."""
        texts = [number for number in range(line, end) if lines[number].strip()]
        if texts:
            blocks.append(Block(texts[0], texts[-1] + 1, []))

    for i, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:  # the end of a block
            first, last = tokens[start].map
            add_definitions(first)
            blocks.append(Block(first, last, tokens[start : i + 1]))
            start, line = i + 1, last
    add_definitions(len(lines))
    return blocks


def render_block(console: Console, text: str, block: Block) -> Segments | None:
    """Return the rendering of a block's text; None if letters of the text would be lost."""
    lines = console.render_lines(_Markdown(text), console.options, pad=False)
    while lines and _is_blank(lines[0]):
        del lines[0]
    while lines and _is_blank(lines[-1]):
        del lines[-1]
    segments = [segment for line in lines for segment in (*line, Segment.line())]
    hidden = "".join(token.info for token in block.tokens)  # languages of code blocks, numbers of items
    lost = _letters(text) - _letters("".join(segment.text for segment in segments)) - _letters(hidden)
    return None if lost or not lines else Segments(segments)


def _is_blank(line: list[Segment]) -> bool:
    return all(not part.text.strip() and not (part.style and part.style.bgcolor) for part in line)


def _is_fence(line: str) -> bool:
    return line.lstrip().startswith(("```", "~~~"))


def _letters(text: str) -> Counter[str]:
    return Counter(letter for letter in text if letter.isalnum())


@contextmanager
def delayed_interrupt() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended, so that what is erased is written again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[Any, ...]] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])


class RenderedMarkdown:
    """An answer that is written on a terminal, with its Markdown rendered.

    Args:
        console: a terminal, whose cursor is at the start of a row.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._wrap = WordWrap(console)
        self._pieces: list[tuple[str, str]] = []  # text and style of what may be rendered yet
        self._first_line = 0  # of the wrapped text, with which they begin
        self._follows_text = False  # the line before them has text
        self._code_lines = 0  # of them that are parsed, if the last block is code that has not ended

    @property
    def column(self) -> int:
        """Column of the cursor."""
        return self._wrap.column

    def add(self, text: str, style: str = "") -> None:
        """Append a piece of text."""
        self._wrap.add(text, style)
        self._pieces.append((text, style))
        if "\n" in text:
            self._render(is_last=False)

    def finish(self) -> None:
        """End the text."""
        self._wrap.flush()
        self._render(is_last=True)

    def _render(self, is_last: bool) -> None:
        """Render the blocks that are complete: all before the last one, as far as whole lines tell."""
        text = "".join(piece for piece, _ in self._pieces)
        lines = text.split("\n")
        if self._code_lines and not is_last and not any(map(_is_fence, lines[self._code_lines : -1])):
            return  # there is no need to parse all of the code again
        blocks = find_blocks(text if is_last else "\n".join([*lines[:-1], ""]))
        complete = blocks if is_last else blocks[:-1]
        if not blocks:
            return
        end, last = len(lines) if is_last else blocks[-1].first, lines[blocks[-1].first : blocks[-1].last]
        is_code = _is_fence(last[0]) and not any(map(_is_fence, last[1:]))
        self._code_lines = len(lines) - 1 - (end if complete else 0) if is_code else 0
        if not complete:
            return
        texts = ["\n".join(lines[block.first : block.last]).rstrip() for block in complete]
        shown = [
            None if block.is_plain else render_block(self.console, part, block) for block, part in zip(complete, texts)
        ]
        for i, block in enumerate(complete):
            if shown[i] is None:
                continue
            with delayed_interrupt():
                if self._wrap.erase(self._first_line + block.first):
                    gap = lines[block.first - 1].strip() if block.first else self._follows_text
                    self._replace(lines, complete[i:], shown[i:], gap=bool(gap))
                    self._write_rest(lines, end)
                    return
        self._keep(lines, end)

    def _replace(self, lines: list[str], blocks: Sequence[Block], shown: Sequence[Segments | None], gap: bool) -> None:
        """Write blocks at the cursor, separated by blank lines, as they are shown; None: as the model wrote them."""
        for block, segments in zip(blocks, shown):
            if gap:
                self.console.print()
            gap = True
            if segments is not None:
                self.console.print(segments, end="")
                continue
            wrap = WordWrap(self.console)
            for text, style in self._between(lines, block.first, block.last):
                wrap.add(text, style)
            wrap.flush()
            if wrap.column:
                self.console.print()

    def _write_rest(self, lines: list[str], end: int) -> None:
        """Begin again with the lines from `end` on, after blocks that have been replaced."""
        if end < len(lines):
            self.console.print()
        rest = self._between(lines, end, len(lines))
        self._wrap, self._pieces, self._first_line, self._follows_text = WordWrap(self.console), rest, 0, False
        for text, style in rest:
            self._wrap.add(text, style)

    def _keep(self, lines: list[str], end: int) -> None:
        """Leave the lines before `end` as they are."""
        self._pieces = self._between(lines, end, len(lines))
        self._first_line += end
        self._follows_text = bool(end and lines[end - 1].strip())

    def _between(self, lines: list[str], first: int, last: int) -> list[tuple[str, str]]:
        """Return the text of lines from `first` to before `last` in pieces with their styles."""
        start, end = (sum(len(line) + 1 for line in lines[:number]) for number in (first, last))
        pieces, position = [], 0
        for text, style in self._pieces:
            part = text[max(start - position, 0) : max(end - position, 0)]
            position += len(text)
            if part:
                pieces.append((part, style))
        return pieces
