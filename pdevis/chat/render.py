"""The display of the chat: tokens, the line after an answer, tables. It computes nothing but rates.

Plain text goes through `print_line`, which wraps at words on a terminal only; piped text stays one line per line.
Colours and other escape codes are left to rich, which omits them if the output is not a terminal.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.chat.session import (
    Answer,
    AnswerFinished,
    AnswerStarted,
    ChatEvent,
    ChatSession,
    DrafterFailed,
    TokenWritten,
    TurnFinished,
)
from pdevis.generation import DecodeStats, TokenEvent
from pdevis.util.argtypes import one_line
from pdevis.util.console import MISSING, format_number, make_table
from pdevis.util.labels import format_models

SOURCE_STYLES = {"draft": "green", "target": "bold"}  # who wrote a token of a speculative answer
CONTROL_CHARACTERS = {code: "�" for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if chr(code) not in "\n\t"}


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line of plain text."""
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def print_error(console: Console, error: object) -> None:
    """Print an error on one line."""
    print_line(console, one_line(error), style="red")


def print_token(console: Console, token: TokenEvent, colored: bool = True) -> None:
    """Append a confirmed token; `colored` marks its source. Control characters of the model never reach a terminal."""
    if not console.is_terminal:
        # written directly, to keep exactly the model's text: rich would expand tabs
        console.file.write(token.text)
        console.file.flush()
        return
    text, style = style_token(token, colored)
    console.out(text, style=style or None, highlight=False, end="")


def style_token(token: TokenEvent, colored: bool) -> tuple[str, str]:
    """Return the text of a token as a terminal may get it, and its style, which is empty if not `colored`."""
    return token.text.translate(CONTROL_CHARACTERS), SOURCE_STYLES[token.source] if colored else ""


def format_percent(value: float | None) -> str:
    """Return a fraction in percent; `MISSING` for None."""
    return MISSING if value is None else f"{100 * value:.0f} %"


def format_speedup(stats: DecodeStats | None, base: DecodeStats | None) -> str:
    """Return tokens per second over those of `base`; `MISSING` if one of them is not known."""
    speed, base_speed = (part and part.tokens_per_second for part in (stats, base))
    return f"{speed / base_speed:.2f}x" if speed and base_speed else MISSING


def format_tokens(count: int) -> str:
    """Return a number of tokens, as in "1 token"."""
    return f"{count} token{'s' * (count != 1)}"


def format_banner(about: dict[str, Any]) -> str:
    """Return the pair in one line: models, devices, formats, mode.

    Args:
        about: what `SpeculativePair.describe` returns.
    """
    mode = f"mode {about['mode']}"
    if about.get("serial_layers"):
        mode += f", {about['check']} {about['serial_layers']} layers"
    elif about["mode"] != "exact":
        mode += f", {about['check']}, threshold {about['threshold']:g}, window {about['window']}"
    parts = [*format_models(about), mode]
    if about.get("profile"):
        parts.append(f"profile {about['profile']}, {about['threads'] or 'default'} threads")
    return " · ".join(parts)


def format_summary(answer: Answer) -> str:
    """Return the line after an answer."""
    stats = answer.stats
    parts = [format_tokens(len(answer.ids)), f"{format_number(stats.tokens_per_second, 1)} tok/s"]
    if stats.drafted:
        draft_fraction = stats.draft_seconds / stats.decode_seconds if stats.decode_seconds > 0 else None
        parts += [
            f"acceptance {format_percent(stats.acceptance_rate)}",
            f"{format_number(stats.mean_accept_length, 2)} tokens per round",
            f"skip {format_number(stats.mean_skip, 1)} layers",
            f"drafting {format_percent(draft_fraction)} of the time",
        ]
    if stats.ahead_rounds + stats.ahead_dropped:
        parts.append(f"{stats.ahead_rounds} of {stats.rounds} drafts made ahead, {stats.ahead_dropped} dropped")
    if stats.invalid_drafts:
        parts.append(f"{stats.invalid_drafts} of {stats.rounds} drafts not finite (--draft_precision)")
    if stats.fallback_rounds:
        parts.append(f"{stats.fallback_rounds} of {stats.rounds} rounds plain, since drafting does not pay")
    if answer.interrupted:
        parts.append("stopped")
    elif stats.stop_reason == "length":
        parts.append("length limit reached (/length N)")
    elif stats.stop_reason == "context":
        parts.append("the models' context is full (/reset)")
    return " · ".join(parts)


def compare_answers(answers: Sequence[Answer], greedy: bool) -> list[str]:
    """Return lines that compare several answers to one prompt: speedups, and for greedy decoding equality."""
    by_method = {answer.method: answer for answer in answers}
    target = by_method.get("target")
    if target is None or len(answers) < 2:
        return []
    speedups = [
        f"{method} {format_speedup(answer.stats, target.stats)}"
        for method, answer in by_method.items()
        if answer is not target
    ]
    lines = [f"speedup over the target: {', '.join(speedups)}"]
    speculative = by_method.get("speculative")
    if greedy and speculative and not (speculative.interrupted or target.interrupted):
        relation = "the same tokens as" if speculative.ids == target.ids else "different tokens from"
        lines.append(f"speculative wrote {relation} the target")
    return lines


class WordWrap:
    """Prints text piece by piece on a terminal, and breaks lines between words: a word appears when it is complete.

    Letters of double width, such as Chinese ones, appear at once: a line may break between them.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._column = 0
        self._has_wrapped = False  # at the start of a line that the text does not begin
        self._word = Text()

    def add(self, text: str, style: str) -> None:
        """Append a piece of text."""
        for letter in text:
            if not letter.isspace():
                self._word.append(letter, style)
                if cell_len(letter) > 1 or self._word.cell_len >= self.console.width:
                    self.flush()
                continue
            self.flush()
            if letter == "\n" or self._column >= self.console.width:
                self._print(Text("\n"))
                self._column, self._has_wrapped = 0, letter != "\n"
            elif not self._has_wrapped:
                self._print(Text(letter))
                self._column += 1

    def flush(self) -> None:
        """Print the word so far, on a new line if it does not fit on this one."""
        if self._column and self._column + self._word.cell_len > self.console.width:
            self._print(Text("\n"))
            self._column = 0
        if self._word:
            self._print(self._word)
            self._column += self._word.cell_len
            self._word, self._has_wrapped = Text(), False

    def _print(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)


class AnswerDisplay:
    """Show the events of a session as they arrive.

    Args:
        console: for the text of the answers.
        notes: for everything else; None: `console`.
        headings: print the name of the decoder above each answer.
    """

    def __init__(self, console: Console, notes: Console | None = None, headings: bool = False) -> None:
        self.console = console
        self.notes = notes or console
        self.headings = headings
        self._line_is_open = False  # the cursor is after the last token of an answer
        self._wrap: WordWrap | None = None  # of the answer that is being written, on a terminal

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
            self._end_line()

    def _show(self, event: ChatEvent) -> None:
        if isinstance(event, TokenWritten):
            self._line_is_open = True
            self._show_token(event.token, colored=event.answer.method == "speculative")
            return
        self._end_line()
        match event:
            case AnswerStarted(answer) if self.headings:
                print_line(self.notes, f"[{answer.method}]", style="dim")
            case AnswerFinished(answer):
                print_line(self.notes, format_summary(answer), style="dim")
            case DrafterFailed(error=error):
                print_error(self.notes, error)
                print_line(self.notes, "loading the drafter into this process and answering again", style="dim")
            case TurnFinished(answers, greedy):
                for line in compare_answers(answers, greedy):
                    print_line(self.notes, line, style="dim")

    def _show_token(self, token: TokenEvent, *, colored: bool) -> None:
        if not self.console.is_terminal:
            print_token(self.console, token, colored=colored)
            return
        self._wrap = self._wrap or WordWrap(self.console)
        self._wrap.add(*style_token(token, colored))

    def _end_line(self) -> None:
        if self._wrap:
            self._wrap.flush()
            self._wrap = None
        if self._line_is_open:
            self._line_is_open = False
            self.console.out("", highlight=False)


def print_table(console: Console, title: str, *, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    table = make_table(columns, rows)
    table.title, table.title_justify = title, "left"
    console.print(table)


def show_stats(console: Console, session: ChatSession) -> None:
    """Print the session's totals per decoder, then the last answers in detail."""
    if not session.history:
        print_line(console, "no answers yet")
        return
    answers = [answer for turn in session.history for answer in turn]
    rows = []
    for method in dict.fromkeys(answer.method for answer in answers):
        stats = session.total(method)
        shared = session.total(method, shared_with="target"), session.total("target", shared_with=method)
        rows.append(
            (
                method,
                str(stats.new_tokens),
                format_number(stats.decode_seconds, 1),
                format_number(stats.tokens_per_second, 1),
                format_speedup(*shared),
                format_percent(stats.acceptance_rate),
                format_number(stats.mean_accept_length, 2) if stats.drafted else MISSING,
                format_number(stats.mean_skip, 1),
            )
        )
    columns = ("decoder", "tokens", "seconds", "tok/s", "speedup", "accept.", "per round", "skip")
    title = "This session, ratios of sums (speedup: over the target, in turns that both answered)"
    print_table(console, title, columns=columns, rows=rows)
    drafted, written = (
        sum(answer.sources[source] for answer in answers if answer.method == "speculative")
        for source in ("draft", "target")
    )
    print_line(console, f"of the speculative tokens, {drafted} were drafted and {written} written by the target")
    for answer in session.history[-1]:
        _show_answer(console, answer)


def _show_answer(console: Console, answer: Answer) -> None:
    stats = answer.stats
    print_line(console, f"last answer, {answer.method}: {format_summary(answer)}")
    phases = ("prefill", "draft", "verify", "total")
    seconds = " · ".join(f"{phase} {getattr(stats, f'{phase}_seconds'):.2f} s" for phase in phases)
    reason = "Ctrl-C" if answer.interrupted else stats.stop_reason
    print_line(console, f"  prompt {format_tokens(stats.prompt_tokens)} · {seconds} · ended by {reason}")
    if stats.drafted:
        depth = f"serial depth {format_number(stats.serial_depth, 1)} sublayers"
        accepted = f"{stats.accepted} of {stats.drafted} drafted tokens accepted"
        sources = f"{answer.sources['draft']} tokens drafted, {answer.sources['target']} written by the target"
        print_line(console, f"  {stats.rounds} rounds in mode {stats.mode} · {accepted} · {depth}")
        print_line(console, f"  {sources}")
        print_line(console, f"  tokens per round: {' '.join(map(str, stats.accept_lengths))}")


def show_help(console: Console, commands: Iterable[tuple[str, str]]) -> None:
    """Print the commands, the keys, and the meaning of the colours."""
    table = Table.grid(padding=(0, 2))
    for usage, text in commands:
        table.add_row(Text(usage, "cyan"), Text(text))
    console.print(table)
    print_line(console, "")
    console.print(
        Text.assemble(
            "Tokens: ",
            ("drafted and accepted", SOURCE_STYLES["draft"]),
            ", ",
            ("written by the target itself", SOURCE_STYLES["target"]),
            ". /stats counts them.",
        )
    )
    print_line(
        console,
        "Keys: Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer or clears the line, Ctrl-D leaves.",
    )
    print_line(console, "If a message begins with a slash, write the slash twice, as in //etc.")
