"""Share: which part of a model one of several devices holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Every `size`-th layer, and one part of the output head's rows; of one device it is the whole.

    Args:
        rank, size: this device, and how many there are.
        cut: hold one part of the rows of every MLP instead of whole MLPs: all devices then work on each of them.
    """

    rank: int = 0
    size: int = 1
    cut: bool = False

    def holds(self, layer: int) -> bool:
        """Whether a layer is here: its attention, and its MLP where those are not cut."""
        return layer % self.size == self.rank

    def rows(self, count: int) -> range:
        """This device's part of a matrix of so many rows; the parts differ by one row at most."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def mlp_rows(self, count: int) -> range:
        return self.rows(count) if self.cut else range(count)


WHOLE = Share()
