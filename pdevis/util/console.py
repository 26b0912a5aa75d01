"""The rich consoles of the scripts: text is printed literally, and tables in pipes are wide."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

WIDE = 200  # columns of a table that goes into a pipe or a file, where nothing has to fit a window


def make_console(file: TextIO | None = None) -> Console:
    """Return a console on a file (None: stdout); without colours, and wide, if that is not a terminal."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    return console
