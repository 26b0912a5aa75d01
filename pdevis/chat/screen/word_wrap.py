"""Text that is written piece by piece on a terminal, in whole words, and can be erased while it is on the screen."""

from __future__ import annotations

from collections import deque

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

TAB = 4  # columns


class WordWrap:
    """Prints text piece by piece and breaks lines between words: a word appears when it is complete.

    Letters of double width, such as Chinese ones, appear at once: a line may break between them. All rows are begun by
    this class and never by the terminal, so that it knows where they are.

    Args:
        console: a terminal, whose cursor is at the start of a row.
        max_rows: show the last rows only; None: all of them.
    """

    def __init__(self, console: Console, max_rows: int | None = None) -> None:
        self.console = console
        self.column = 0
        self._size = console.size
        self._row = 0  # of the cursor
        self._line_rows = [0]  # in which each line of the text begins
        self._max_rows = max_rows
        self._rows: deque[Text] = deque([Text()], maxlen=max_rows)  # the last ones, if there is a limit
        self._has_wrapped = False  # at the start of a line that the text does not begin
        self._word: list[tuple[str, str]] = []  # letters of the next word, in runs of one style
        self._word_width = 0

    def add(self, text: str, style: str = "") -> None:
        """Append a piece of text."""
        for letter in text:
            if not letter.isspace():
                run = self._word.pop()[0] if self._word and self._word[-1][1] == style else ""
                self._word.append((run + letter, style))
                self._word_width += cell_len(letter)
                if cell_len(letter) > 1 or self._word_width >= self.console.width:
                    self.flush()
                continue
            self.flush()
            blank = " " * (TAB - self.column % TAB) if letter == "\t" else letter
            if letter == "\n" or self.column + cell_len(blank) > self.console.width:
                self._begin_row()
                self._has_wrapped = letter != "\n"
                if letter == "\n":
                    self._line_rows.append(self._row)
            elif not self._has_wrapped:
                self._print(Text(blank))

    def flush(self) -> None:
        """Print the word so far, on a new row if it does not fit on this one."""
        if self.column and self.column + self._word_width > self.console.width:
            self._begin_row()
        if self._word:
            self._print(Text.assemble(*self._word))
            self._word, self._word_width, self._has_wrapped = [], 0, False

    def finish(self) -> None:
        """End the text."""
        self.flush()

    def erase(self, line: int = 0) -> bool:
        """Erase all from the start of a line of the text on; return False if that is not possible.

        It is not if the line has left the screen, or the size of the screen has changed.
        """
        rows = self._row - self._line_rows[line]
        if self.console.size != self._size or rows >= self.console.height:
            return False
        self._erase(rows)
        self._row = self._line_rows[line]
        del self._line_rows[line + 1 :]
        self._word, self._word_width, self._has_wrapped = [], 0, False
        return True

    def _begin_row(self) -> None:
        self.console.print(Text("\n"), end="", soft_wrap=True)
        self._row, self.column = self._row + 1, 0
        if self._max_rows:
            self._rows.append(Text())
            self._show_last_rows()

    def _show_last_rows(self) -> None:
        """Move the rows up by one if there are more than `max_rows`."""
        if self._row < self._max_rows or self.console.size != self._size:
            return
        self._erase(self._max_rows)
        self._row = self._max_rows - 1
        self.console.print(Text("\n").join(self._rows), end="", soft_wrap=True)

    def _erase(self, rows: int) -> None:
        """Erase the row of the cursor and rows above it."""
        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * rows
        self.console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))
        self.column = 0

    def _print(self, text: Text) -> None:
        self.console.print(text, end="", soft_wrap=True)
        self.column += text.cell_len
        if self._max_rows:
            self._rows[-1].append_text(text)
