"""Share: which part of a model one of several devices holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardSpec:
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

    def rows(self, count: int, block: int = 1) -> range:
        """This device's part of a matrix of so many rows: whole blocks; the parts differ by one block at most."""
        blocks = count // block
        return range(self.rank * blocks // self.size * block, (self.rank + 1) * blocks // self.size * block)

    def mlp_rows(self, count: int, block: int = 1) -> range:
        return self.rows(count, block) if self.cut else range(count)


WHOLE = ShardSpec()
