"""The rich consoles of the scripts: text is printed literally, and tables in pipes are wide."""

from __future__ import annotations

from rich.console import Console

WIDE = 200  # columns of a table that goes into a pipe or a file, where nothing has to fit a window


def make_console() -> Console:
    """stdout; without colours, and wide, where that is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    return console
