"""Consoles, tables and numbers of the scripts: text is printed literally, and tables in pipes are wide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 200  # width of a table in a pipe or a file, which has no window to fit into
MISSING = "–"  # in tables, for a value that was not measured


def make_console() -> Console:
    """Return a console on stdout; without colours, and wide, if that is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


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
