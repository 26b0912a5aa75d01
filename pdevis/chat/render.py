"""Texts of the chat: the lines around an answer, tables. It computes nothing but rates.

Plain text goes through `print_line`, which wraps at words on a terminal only; piped text stays one line per line.
Colours and other escape codes are left to rich, which omits them if the output is not a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.chat.session import Answer, ChatSession
from pdevis.generation import DecodeStats
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


def visible(text: str) -> str:
    """Return a text of the model without control characters, which must never reach a terminal."""
    return text.translate(CONTROL_CHARACTERS)


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
    elif stats.stop_reason == "length" and not answer.split.finished:
        parts.append("length limit reached inside the thought (/length N, /thinking off)")
    elif stats.stop_reason == "length":
        parts.append("length limit reached (/length N)")
    elif stats.stop_reason == "context":
        parts.append("the models' context is full (/clear)")
    return " · ".join(parts)


def format_thought(tokens: int, seconds: float, finished: bool) -> str:
    """Return the line in the place of a thought."""
    return f"thought: {format_tokens(tokens)}, {seconds:.1f} s" + ", not finished" * (not finished)


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
