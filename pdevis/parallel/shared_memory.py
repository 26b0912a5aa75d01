"""The exchange between CPU cores of one machine: a `Link` through memory that all ranks and the main process map.

Each rank copies its part in, counts up, and watches the others' counters. Shared memory must be written in order: x86
keeps the order of stores; elsewhere a lock that is taken is the fence.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdevis.models.layers import ShardSpec
from pdevis.parallel.collectives import Dropped, LinkError

SPINS = 2000  # looks at a counter before others may have the core; about 0.1 ms
LINE = 8  # counters are a cache line apart
MOST_VIEWS = 1000  # kept; prompts bring shapes of their own
FENCED = platform.machine().lower() not in ("x86_64", "amd64")  # where stores may overtake each other


@dataclass(frozen=True)
class _Views:
    """Where the items of an exchange stand: this rank's, or its parts of them, and all."""

    mine: list[Tensor]
    items: list[Tensor]


class Board:
    """Memory that the main process and all ranks share, made before they start; it vanishes with the last of them.

    Args:
        size: ranks.
        room: bytes that one rank may have to contribute to one exchange; 0 where they exchange in another way.
    """

    def __init__(self, size: int, room: int) -> None:
        self.size = size
        room = -(-room // 64) * 64
        self.data = torch.zeros(2, size, room, dtype=torch.uint8).share_memory_()
        # each in a cache line of its own: the ranks' turns, two marks of dropping, letters sent, the ranks' heartbeats
        self.counters = torch.zeros(2 * size + 3, LINE, dtype=torch.int64).share_memory_()
        self.sent = LINE * (size + 2)

    def numbers(self) -> memoryview:
        return memoryview(self.counters.view(-1).numpy())

    def beat_of(self, rank: int) -> int:
        return LINE * (self.size + 3 + rank)


class Signs:
    """What one rank and the main process tell each other without a message: that there is one, and that it is alive."""

    def __init__(self, board: Board, rank: int) -> None:
        self._numbers = board.numbers()
        self._beat, self._sent = board.beat_of(rank), board.sent
        self._read = 0

    def beat(self) -> None:
        self._numbers[self._beat] += 1

    def mail_waits(self) -> bool:
        return self._numbers[self._sent] > self._read

    def mail_read(self) -> None:
        self._read += 1


class SharedMemory:
    """A `Link` through a `Board`.

    The two halves of the board are used in turn. A rank that has seen all counters at n knows that everybody has read
    what was written for n - 1, so that n + 1 may be written where n - 1 stood.
    """

    fast = True

    def __init__(self, board: Board, rank: int, timeout: float, beat: Callable[[], None]) -> None:
        self.rank, self.size = rank, board.size
        self.unwanted: Callable[[], bool] | None = None
        self.dropping = False
        self.timeout = timeout
        self.beat = beat
        self._data = board.data
        self._counters = board.numbers()
        self._others = [LINE * other for other in range(self.size) if other != rank]
        self._turn = 0
        self._fence = threading.Lock()
        self._marks = [LINE * (self.size + half) for half in range(2)]
        self._views: dict[tuple[Any, ...], _Views] = {}
        self._parent = os.getppid()

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        return self._exchange(mine, self._apart, tuple(owners), shape, like.dtype)

    def join(self, mine: Sequence[Tensor], size: int, block: int = 1) -> list[Tensor]:
        return self._exchange(mine, self._columns, len(mine), len(mine[0]), size, block, mine[0].dtype)

    def _exchange(self, mine: Sequence[Tensor], cut: Callable[..., _Views], *how: Any) -> list[Tensor]:
        self._turn += 1
        half = self._turn & 1
        key = half, *how
        views = self._views.get(key)
        if views is None:  # slicing takes longer than the exchange itself
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            views = self._views[key] = cut(*key)
        for place, item in zip(views.mine, mine, strict=True):
            place.copy_(item)
        mark = self._marks[half]
        if self.rank == 0:
            self._counters[mark] = self.unwanted is not None and self.unwanted()
        self._meet()
        if self._counters[mark]:
            raise Dropped
        return views.items

    def _columns(self, half: int, count: int, tokens: int, size: int, block: int, dtype: torch.dtype) -> _Views:
        nbytes = count * tokens * size * dtype.itemsize
        place = self._data[half].view(-1)[:nbytes]
        assert place.nbytes == nbytes, "the board is too small"
        columns = ShardSpec(self.rank, self.size).rows(size, block)
        items = list(place.view(dtype).view(count, tokens, size))
        return _Views([item[:, columns.start : columns.stop] for item in items], items)

    def _apart(self, half: int, owners: tuple[int, ...], shape: torch.Size, dtype: torch.dtype) -> _Views:
        nbytes = shape.numel() * dtype.itemsize
        seen, items = [0] * self.size, []
        for owner in owners:
            part = self._data[half, owner, seen[owner] * nbytes : (seen[owner] + 1) * nbytes]
            assert part.nbytes == nbytes, "the board is too small"
            items.append(part.view(dtype).view(shape))
            seen[owner] += 1
        mine = [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]
        return _Views(mine, items)

    def _meet(self) -> None:
        self.beat()
        if FENCED:
            with self._fence:
                pass
        self._counters[LINE * self.rank] = self._turn
        for other in self._others:
            spins = 0
            while self._counters[other] < self._turn:
                spins += 1
                if spins > SPINS:
                    self._wait(other)
                    break
        if FENCED:
            with self._fence:
                pass

    def _wait(self, other: int) -> None:
        """The slow way: let others have the core, and look whether anybody is still there."""
        deadline = time.monotonic() + self.timeout
        while self._counters[other] < self._turn:
            os.sched_yield()
            if os.getppid() != self._parent:
                raise LinkError("the main process is gone")
            if time.monotonic() > deadline:
                raise LinkError(f"rank {other // LINE} of the drafter has not answered for {self.timeout:g} s")
