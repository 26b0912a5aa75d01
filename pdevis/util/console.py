"""Consoles, tables and numbers of the scripts: text is printed literally, and tables in pipes are wide."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 200  # width of a table in a pipe or a file, which has no window to fit into
NOTE = "note: "  # begins a progress line that should stay readable
MISSING = "–"  # in tables, for a value that was not measured


def make_console(file: TextIO | None = None) -> Console:
    """Return a console on a file (None: stdout); without colours, and wide, if that is not a terminal."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


class StatusLine:
    """An `on_progress` callback for a terminal: a spinner with the last text; notes stay above it."""

    updates_in_place = True

    def __init__(self, status: Status) -> None:
        self._status = status

    def __call__(self, text: str) -> None:
        if text.startswith(NOTE):
            self._status.console.print(Text(text), soft_wrap=True)
        else:
            self._status.update(Text(text))


@contextmanager
def progress_on_stderr(title: str) -> Iterator[Callable[[str], None]]:
    """Yield an `on_progress` callback: a `StatusLine` if stderr is a terminal, else one that prints each text."""
    console = make_console(sys.stderr)
    if console.is_terminal:
        with console.status(title) as status:
            yield StatusLine(status)
    else:
        yield lambda text: print(text, file=sys.stderr, flush=True)


class StderrLog:
    """Prints lines on stderr, each with the seconds since the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.start:4.0f} s] {text}", file=sys.stderr, flush=True)


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines of plain text, which the terminal wraps, not rich."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose other columns are numbers, aligned to the right."""
    table = Table()
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def format_number(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimal places; `MISSING` for None."""
    return MISSING if value is None else f"{value:.{digits}f}"
