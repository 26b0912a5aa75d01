"""Share: which part of a model one of several devices holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Every `size`-th layer, and one part of the output head; of one device it is the whole."""

    rank: int = 0
    size: int = 1

    def holds(self, layer: int) -> bool:
        return layer % self.size == self.rank

    def rows(self, count: int) -> range:
        """This device's part of a head of so many rows."""
        most = -(-count // self.size)
        return range(min(self.rank * most, count), min((self.rank + 1) * most, count))


WHOLE = Share()
