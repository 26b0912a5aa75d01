"""ProgressBar: the progress of a long step, as lines of text for an `on_progress` callback.

A callback with a true attribute `updates_in_place` shows each text instead of the one before: it gets a bar at every
per cent. Any other callback appends lines, to a file perhaps: it gets a short line at every quarter.

    bar = ProgressBar(on_progress, "downloading the model", total=93 << 20)
    bar.show(31 << 20)
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]

MIB = 1 << 20
BAR_CELLS = 24
BAR_STEPS, LINE_STEPS = 100, 4  # texts per step of work


class ProgressBar:
    """One step of `total` bytes, at most; texts are sent only when enough has changed.

    Args:
        on_progress: is called with each text.
        label: says what is done, as in "downloading …".
        total: bytes.
    """

    def __init__(self, on_progress: Progress, label: str, *, total: int) -> None:
        self.on_progress = on_progress
        self.label = label
        self.total = total
        self.done = 0
        self._in_place = getattr(on_progress, "updates_in_place", False)
        self._steps = BAR_STEPS if self._in_place else LINE_STEPS
        self._shown = 0  # steps

    def show(self, done: int) -> None:
        """Report that `done` bytes are finished."""
        self.done = min(done, self.total)
        step = self.done * self._steps // self.total
        if step > self._shown:
            self._shown = step
            self.on_progress(self._text())

    def advance(self, size: int) -> None:
        """Report that `size` more bytes are finished."""
        self.show(self.done + size)

    def _text(self) -> str:
        done = self.done if self.done < self.total else self.total + MIB - 1
        amount = f"{done // MIB} of {-(-self.total // MIB)} MiB"
        if not self._in_place:
            return f"{self.label}: {amount}"
        cells = self.done * BAR_CELLS // self.total
        return f"{self.label} [{'#' * cells}{'.' * (BAR_CELLS - cells)}] {amount}"
