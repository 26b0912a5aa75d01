"""The display of an answer: thoughts dimmed and folded, text in whole words, Markdown rendered.

On a terminal a thought shows its last rows while it is written, and one line when it has ended; the answer is written
as it comes, and rendered block by block. In a pipe nothing is rendered, and thoughts are left out. `DisplaySettings`
changes both.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pdevis.chat.render import (
    SOURCE_STYLES,
    compare_answers,
    format_summary,
    format_thought,
    print_error,
    print_line,
    visible,
)
from pdevis.chat.screen.word_wrap import WordWrap
from pdevis.chat.session import (
    Answer,
    AnswerFinished,
    AnswerStarted,
    ChatEvent,
    DrafterFailed,
    TokenWritten,
    TurnFinished,
)
from pdevis.reasoning.reasoning_stream import Part

if TYPE_CHECKING:
    from pdevis.chat.screen.rendered_markdown import RenderedMarkdown

THOUGHT_ROWS = 8  # of a thought that is being written
THOUGHT_STYLE = "dim"
WAITING = "reading …"
ERASE_ROW = "\r\x1b[2K"


@dataclass
class DisplaySettings:
    """Settings of the display of answers.

    Attributes:
        plain: nothing is rendered or erased: the text stays as the model writes it, thoughts included.
        shows_thoughts: they stay on the screen, and are not left out in a pipe.
    """

    plain: bool = False
    shows_thoughts: bool = False


class AnswerDisplay:
    """Show the events of a session as they arrive.

    Args:
        console: for the text of the answers.
        notes: for everything else; None: `console`.
        headings: print the name of the decoder above each answer.
        settings: None: the default ones.
    """

    def __init__(
        self,
        console: Console,
        notes: Console | None = None,
        headings: bool = False,
        settings: DisplaySettings | None = None,
    ) -> None:
        self.console = console
        self.notes = notes or console
        self.headings = headings
        self.settings = settings or DisplaySettings()
        self._may_erase = console.is_terminal and not console.is_dumb_terminal and not self.settings.plain
        self._thought: WordWrap | None = None  # that is being written
        self._has_thought = False  # a thought is being written, shown or not
        self._counted = (0, 0.0)  # tokens and seconds of the answer's earlier thoughts
        self._text: RenderedMarkdown | WordWrap | None = None  # of the answer that is being written, on a terminal
        self._line_is_open = False  # in a pipe: the last line of an answer has not ended
        self._is_waiting = False  # a line says that the prompt is read

    def show(self, events: Generator[ChatEvent, None, Any]) -> ChatEvent | None:
        """Show all events; returns the last one.

        Ctrl-C may arrive while an event is shown. The session then gets it, and ends the answer as it does if Ctrl-C
        arrives while a token is computed.
        """
        event = None
        try:
            upcoming = next(events)
            while True:
                event = upcoming
                try:
                    self._show(event)
                    upcoming = next(events)
                except KeyboardInterrupt as interrupt:
                    upcoming = events.throw(interrupt)
        except StopIteration:
            return event
        finally:
            self._end_text()

    def _show(self, event: ChatEvent) -> None:
        self._end_waiting()
        match event:
            case AnswerStarted(answer):
                self._counted = (0, 0.0)
                if self.headings:
                    print_line(self.notes, f"[{answer.method}]", style="dim")
                if self._may_erase:
                    self.console.print(WAITING, style="dim", end="")
                    self._is_waiting = True
            case TokenWritten(answer, token, parts):
                style = SOURCE_STYLES[token.source] if answer.method == "speculative" else ""
                self._write(answer, parts, raw=token.text, style=style)
            case AnswerFinished(answer, parts):
                self._write(answer, parts)
                self._end_thought(answer)
                self._end_text()
                print_line(self.notes, format_summary(answer), style="dim")
            case DrafterFailed(answer, error):
                self._end_thought(answer)
                self._end_text()
                print_error(self.notes, error)
                print_line(self.notes, "loading the drafter into this process and answering again", style="dim")
            case TurnFinished(answers, greedy):
                for line in compare_answers(answers, greedy):
                    print_line(self.notes, line, style="dim")

    def _write(self, answer: Answer, parts: list[Part], *, raw: str = "", style: str = "") -> None:
        """Write what a token adds; `raw` is its whole text."""
        if not self.console.is_terminal and self.settings.shows_thoughts:
            if raw:
                self._write_pipe(raw if self._line_is_open else answer.thoughts.opening + raw)
            return
        for part in parts:
            if part.is_reasoning:
                self._has_thought = True
                if self.console.is_terminal:
                    self._write_thought(visible(part.text))
                continue
            self._end_thought(answer)
            if self.console.is_terminal:
                self._text = self._text or self._new_text()
                self._text.add(visible(part.text), style)
            else:
                self._write_pipe(part.text)
        if not answer.thoughts.is_thinking:
            self._end_thought(answer)

    def _write_pipe(self, text: str) -> None:
        """Write to a file directly, to keep exactly the model's text: rich would expand tabs."""
        self.console.file.write(text)
        self.console.file.flush()
        self._line_is_open = True

    def _new_text(self) -> RenderedMarkdown | WordWrap:
        if not self._may_erase:
            return WordWrap(self.console)
        from pdevis.chat.screen.rendered_markdown import RenderedMarkdown  # its parsers need not load before the prompt

        return RenderedMarkdown(self.console)

    def _write_thought(self, text: str) -> None:
        if self._thought is None:
            self._close(self._text)
            self._text = None
            folds = self._may_erase and not self.settings.shows_thoughts
            rows = max(1, min(THOUGHT_ROWS, self.console.height - 2)) if folds else None
            self._thought = WordWrap(self.console, rows)
        self._thought.add(text, THOUGHT_STYLE)

    def _end_thought(self, answer: Answer) -> None:
        """Put one line in the place of a thought, or below it if it stays."""
        if not self._has_thought:
            return
        thought, self._thought, self._has_thought = self._thought, None, False
        if thought and (self.settings.shows_thoughts or not self._may_erase or not thought.erase()):
            self._close(thought)
        tokens, seconds = answer.thoughts.tokens - self._counted[0], answer.thought_seconds - self._counted[1]
        self._counted = answer.thoughts.tokens, answer.thought_seconds
        line = format_thought(tokens, seconds, finished=not answer.thoughts.is_thinking)
        print_line(self.notes, line, style=THOUGHT_STYLE)

    def _end_waiting(self) -> None:
        """Erase the line that says that the prompt is read."""
        if self._is_waiting:
            self.console.file.write(ERASE_ROW)
            self._is_waiting = False

    def _end_text(self) -> None:
        """End the last line of what is being written."""
        self._end_waiting()
        self._close(self._thought)
        self._close(self._text)
        if self._line_is_open:
            self.console.file.write("\n")
        self._thought, self._text, self._has_thought, self._line_is_open = None, None, False, False

    def _close(self, text: RenderedMarkdown | WordWrap | None) -> None:
        if text:
            text.finish()
            if text.column:
                self.console.print()
