"""How the chat looks: tokens, the line after an answer, tables. It computes nothing but rates.

Plain text goes through `line`, which wraps at words on a terminal only; what is piped stays one line per line.
Colour and other escape codes are rich's business, which leaves them out where the output is not a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdevis.generation import DecodeStats, TokenEvent

if TYPE_CHECKING:
    from pdevis.chat.session import Answer, ChatSession

DRAFTED, WRITTEN = "green", "bold"  # tokens that the drafter proposed, tokens that the target wrote itself
UNSAFE = {code: "�" for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if chr(code) not in "\n\t"}


def line(console: Console, text: str, style: str = "") -> None:
    """One line of plain text."""
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def error(console: Console, text: object) -> None:
    """What went wrong, on one line."""
    line(console, " ".join(str(text).split()), "red")


def heading(console: Console, method: str) -> None:
    line(console, f"[{method}]", "dim")


def token(console: Console, event: TokenEvent, mixed: bool = True) -> None:
    """Append a confirmed token; `mixed` marks who wrote it. A terminal gets no control characters of the model's."""
    if not console.is_terminal:
        # exactly the model's text: rich would expand its tabs
        console.file.write(event.text)
        console.file.flush()
        return
    style = (DRAFTED if event.source == "draft" else WRITTEN) if mixed else None
    console.out(event.text.translate(UNSAFE), style=style, highlight=False, end="")


def end_of_answer(console: Console) -> None:
    console.out("", highlight=False)


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def ratio(stats: DecodeStats | None, base: DecodeStats | None) -> str:
    """Speed over speed."""
    one, other = (part and part.tokens_per_second for part in (stats, base))
    return f"{one / other:.2f}x" if one and other else "–"


def draft_share(stats: DecodeStats) -> float | None:
    """The drafter's part of the decoding time."""
    return stats.draft_seconds / stats.decode_seconds if stats.decode_seconds > 0 else None


def tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def summary(answer: Answer) -> str:
    """The line after an answer."""
    stats = answer.stats
    parts = [tokens(len(answer.ids)), f"{number(stats.tokens_per_second)} tok/s"]
    if stats.drafted:
        parts += [
            f"acceptance {percent(stats.acceptance_rate)}",
            f"{number(stats.mean_accept_length, 2)} tokens per round",
            f"skip {number(stats.mean_skip)} layers",
            f"drafting {percent(draft_share(stats))} of the time",
        ]
    if stats.ahead_rounds + stats.ahead_dropped:
        parts.append(f"{stats.ahead_rounds} of {stats.rounds} drafts made ahead, {stats.ahead_dropped} dropped")
    if stats.fallback_rounds:
        parts.append(f"{stats.fallback_rounds} of {stats.rounds} rounds plain, since drafting does not pay")
    if answer.interrupted:
        parts.append("stopped")
    elif stats.stop_reason == "length":
        parts.append("cut at the length limit (/length N)")
    elif stats.stop_reason == "context":
        parts.append("the models' context is full (/reset)")
    return " · ".join(parts)


def comparison(answers: Sequence[Answer], greedy: bool) -> list[str]:
    """How the decoders compare on one prompt: speeds over the target's, and whether greedy ids agree."""
    by_method = {answer.method: answer for answer in answers}
    base = by_method.get("target")
    if base is None:
        return []
    ratios = [f"{name} {ratio(answer.stats, base.stats)}" for name, answer in by_method.items() if answer is not base]
    lines = [f"speed over the target's: {', '.join(ratios)}"]
    other = by_method.get("speculative")
    if greedy and other and not (other.interrupted or base.interrupted):
        same = "the same tokens as" if other.ids == base.ids else "other tokens than"
        lines.append(f"speculative wrote {same} the target")
    return lines


def banner(about: dict[str, Any]) -> str:
    """The pair in one line: models, devices, formats, mode."""
    target = f"{about['target']} ({about['target_precision']}, {about['target_device']})"
    drafter = f"{about['drafter']} ({about['draft_precision']}, {about['draft_device']})"
    mode = f"mode {about['mode']}"
    if about["mode"] != "exact":
        mode += f", {about['check']}, threshold {about['threshold']:g}, window {about['window']}"
    tuned = f" · profile {about['profile']}, {about['threads'] or 'default'} threads" if about.get("profile") else ""
    return f"target {target} · drafter {drafter} · {mode}{tuned}"


def grid(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def show_stats(session: ChatSession) -> None:
    """The session's totals per decoder, then the last answer in detail."""
    console = session.console
    if not session.history:
        line(console, "nothing answered yet")
        return
    answers = [answer for turn in session.history for answer in turn]
    rows = []
    for method in dict.fromkeys(answer.method for answer in answers):
        stats = session.total(method)
        both = session.total(method, beside="target"), session.total("target", beside=method)
        rows.append(
            (
                method,
                str(stats.new_tokens),
                number(stats.decode_seconds, 1),
                number(stats.tokens_per_second),
                ratio(*both),
                percent(stats.acceptance_rate),
                number(stats.mean_accept_length, 2) if stats.drafted else "–",
                number(stats.mean_skip),
            )
        )
    columns = ("decoder", "tokens", "seconds", "tok/s", "to target", "accept.", "per round", "skip")
    console.print(grid("This session: sums over sums (to target: of the turns that both answered)", columns, rows))
    drafted, written = (
        sum(answer.sources[source] for answer in answers if answer.method == "speculative")
        for source in ("draft", "target")
    )
    line(console, f"of the speculative tokens, {drafted} were drafted and {written} written by the target")
    for answer in session.history[-1]:
        _show_answer(console, answer)


def _show_answer(console: Console, answer: Answer) -> None:
    stats = answer.stats
    line(console, f"last answer, {answer.method}: {summary(answer)}")
    names = ("prefill", "draft", "verify", "total")
    seconds = " · ".join(f"{name} {getattr(stats, f'{name}_seconds'):.2f} s" for name in names)
    ended = "Ctrl-C" if answer.interrupted else stats.stop_reason
    line(console, f"  prompt {tokens(stats.prompt_tokens)} · {seconds} · ended by {ended}")
    if stats.drafted:
        depth = f"serial depth {number(stats.serial_depth)} sublayers"
        accepted = f"{stats.accepted} of {stats.drafted} drafted tokens accepted"
        line(console, f"  {stats.rounds} rounds in mode {stats.mode} · {accepted} · {depth}")
        line(console, f"  {answer.sources['draft']} tokens drafted, {answer.sources['target']} written by the target")
        line(console, f"  tokens per round: {' '.join(map(str, stats.accept_lengths))}")


def show_help(console: Console, commands: Iterable[tuple[str, str]]) -> None:
    """The commands, the keys, and what the colours mean."""
    table = Table.grid(padding=(0, 2))
    for usage, text in commands:
        table.add_row(Text(usage, "cyan"), Text(text))
    console.print(table)
    line(console, "")
    console.print(
        Text.assemble(
            "Tokens: ",
            ("drafted and accepted", DRAFTED),
            ", ",
            ("written by the target itself", WRITTEN),
            ". /stats counts them.",
        )
    )
    line(
        console,
        "Keys: Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer or clears the line, Ctrl-D leaves.",
    )
    line(console, "A text that begins with a slash: write it twice, as in //etc.")
