"""How the ranks of a drafter exchange what each of them has computed: one operation, `share`, in two implementations.

`SharedMemory` is for CPU cores of one machine: each rank copies its part into memory that all of them map, counts up,
and watches the others' counters. `ProcessGroup` is torch.distributed: NCCL between GPUs, gloo between CPU processes.
Between two cores an exchange takes some ten µs through shared memory and some hundred through gloo, as long as a small
drafter's sublayer (tests/perf/bench_links.py).

Shared memory must be written in order. x86 keeps the order of stores; elsewhere a lock that is taken is the fence.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

SPINS = 2000  # looks at a counter before others may have the core; about 0.1 ms
LINE = 8  # counters are a cache line apart
MOST_VIEWS = 1000  # kept; prompts bring shapes of their own
FENCED = platform.machine().lower() not in ("x86_64", "amd64")  # where stores may overtake each other


class Dropped(Exception):
    """What is being drafted is not wanted any more. Raised on all ranks at the same exchange."""


class LinkError(ConnectionError):
    """Another rank does not answer."""


class Link(Protocol):
    """One rank's end of the exchange among `size` ranks.

    `unwanted` is asked on rank 0 at each exchange, where it is set: True drops what is being computed, on all ranks.
    """

    rank: int
    size: int
    unwanted: Callable[[], bool] | None
    dropping: bool  # whether what is computed may be dropped, alike on all ranks

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        """Every item, where item i of that shape comes from rank owners[i] and `mine` are this rank's, in order.

        The items stand in memory that the next exchange but one overwrites: what is to last is copied.

        Args:
            like: a tensor of the items' dtype and device.

        Raises:
            Dropped: where rank 0 says so. LinkError: another rank does not answer.
        """
        ...


class Alone:
    """No other rank: nothing to exchange. It still says when work is dropped, and that this process is alive."""

    rank, size = 0, 1

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self.unwanted: Callable[[], bool] | None = None
        self.dropping = False

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        self.beat()
        if self.unwanted and self.unwanted():
            raise Dropped
        return list(mine)


@dataclass(frozen=True)
class _Views:
    """Where the items of an exchange stand: this rank's, and all."""

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
        self._turn += 1
        half = self._turn & 1
        key = half, tuple(owners), shape, like.dtype
        views = self._views.get(key)
        if views is None:  # slicing takes longer than the exchange itself
            views = self._views[key] = self._cut(*key)
        for place, item in zip(views.mine, mine, strict=True):
            place.copy_(item)
        mark = self._marks[half]
        if self.rank == 0:
            self._counters[mark] = self.unwanted is not None and self.unwanted()
        self._meet()
        if self._counters[mark]:
            raise Dropped
        return views.items

    def _cut(self, half: int, owners: tuple[int, ...], shape: torch.Size, dtype: torch.dtype) -> _Views:
        if len(self._views) >= MOST_VIEWS:
            self._views.clear()
        nbytes = shape.numel() * torch.empty(0, dtype=dtype).element_size()
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


class ProcessGroup:
    """A `Link` through torch.distributed: each rank fills in its items, and one all-reduce adds up zeros and items.

    Dropping is looked at where rank 0 alone contributes integers (`agree`): anywhere else it would cost an exchange.
    """

    def __init__(self, rank: int, size: int, beat: Callable[[], None]) -> None:
        self.rank, self.size = rank, size
        self.unwanted: Callable[[], bool] | None = None
        self.dropping = False
        self.beat = beat

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        self.beat()
        items = torch.zeros(len(owners), *shape, dtype=like.dtype, device=like.device)
        left = list(mine)
        for place, owner in enumerate(owners):
            if owner == self.rank:
                items[place] = left.pop(0)
        looks = self.dropping and not like.is_floating_point()
        if looks and self.rank == 0 and self.unwanted and self.unwanted():
            items.fill_(-1)
        try:
            torch.distributed.all_reduce(items)
        except RuntimeError as error:
            raise LinkError(f"another rank of the drafter does not answer ({str(error).splitlines()[0]})") from error
        if looks and bool((items < 0).any()):
            raise Dropped
        return list(items.unbind())
