"""Shared memory between the main process and the workers of a drafter: all-gather, heartbeats, a message count.

In an all-gather each rank copies its part in, increments its own counter and polls the counters of the others. Other
ranks must see the stores in program order: x86 guarantees that; elsewhere taking a lock is the memory fence.
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
from pdevis.parallel.collectives import CommunicationError, DraftCancelled

SPINS_BEFORE_YIELD = 2000  # polls of a counter before other threads may have the core; about 0.1 ms
CACHE_LINE_BYTES = 64
COUNTER_STRIDE = CACHE_LINE_BYTES // 8  # each int64 counter has a cache line of its own
MAX_CACHED_VIEWS = 1000  # layouts of exchanges; each prompt length adds some
NEEDS_FENCE = platform.machine().lower() not in ("x86_64", "amd64")  # True if stores may be reordered
CLOSED = 2**62  # message count after the main process has closed its connections


class SharedBuffer:
    """Memory that the main process and all workers map; created before they start, freed with the last of them.

    The data has two halves, which exchanges use alternately. The counters are, in this order: exchanges of each rank,
    cancellation of each half, messages sent, heartbeats of each rank.

    Args:
        size: number of ranks.
        max_bytes: bytes that one rank contributes to one exchange at most; 0 if they use another communicator.
    """

    def __init__(self, size: int, max_bytes: int) -> None:
        self.size = size
        row_bytes = -(-max_bytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
        self.data = torch.zeros(2, size, row_bytes, dtype=torch.uint8).share_memory_()
        self._counters = torch.zeros(2 * size + 3, COUNTER_STRIDE, dtype=torch.int64).share_memory_()
        self.cancel_index = COUNTER_STRIDE * size
        self.message_index = COUNTER_STRIDE * (size + 2)
        self.heartbeat_index = COUNTER_STRIDE * (size + 3)

    def counters(self) -> memoryview:
        """Return a view of the counters; access through it is faster than through a tensor."""
        return memoryview(self._counters.view(-1).numpy())


class Heartbeat:
    """Counter that one worker increments to show the main process that it is alive."""

    def __init__(self, buffer: SharedBuffer, rank: int) -> None:
        self._counters = buffer.counters()
        self._index = buffer.heartbeat_index + COUNTER_STRIDE * rank

    @property
    def count(self) -> int:
        return self._counters[self._index]

    def beat(self) -> None:
        self._counters[self._index] += 1


class MessageCounter:
    """Number of messages sent to the workers. A worker that is computing looks at it rather than at its pipe."""

    def __init__(self, buffer: SharedBuffer) -> None:
        self._counters = buffer.counters()
        self._index = buffer.message_index
        self._received = 0

    def count_sent(self) -> None:
        """In the main process: announce a message."""
        self._counters[self._index] += 1

    def close(self) -> None:
        """In the main process: announce a message that never comes, so that workers find their pipe closed."""
        self._counters[self._index] = CLOSED

    def message_pending(self) -> bool:
        """In a worker: True if a message has been announced that it has not received."""
        return self._counters[self._index] > self._received

    def count_received(self) -> None:
        self._received += 1


@dataclass(frozen=True)
class _Views:
    """Views of the items of an exchange in the buffer: `own` are written by this rank, `gathered` are all of them."""

    own: list[Tensor]
    gathered: list[Tensor]


class SharedMemoryCommunicator:
    """A `Communicator` through a `SharedBuffer`.

    The two halves of the buffer are used alternately. A rank that has seen all counters at n knows that every rank has
    read what was written for exchange n - 1, so that exchange n + 1 may overwrite it.
    """

    fast = True

    def __init__(
        self, buffer: SharedBuffer, rank: int, *, timeout_seconds: float, heartbeat: Callable[[], None]
    ) -> None:
        self.rank, self.size = rank, buffer.size
        self.should_cancel: Callable[[], bool] | None = None
        self.cancellable = False
        self.timeout_seconds = timeout_seconds
        self.heartbeat = heartbeat
        self._data = buffer.data
        self._counters = buffer.counters()
        self._own_index = COUNTER_STRIDE * rank
        self._other_indices = [COUNTER_STRIDE * other for other in range(self.size) if other != rank]
        self._cancel_indices = [buffer.cancel_index + COUNTER_STRIDE * half for half in range(2)]
        self._exchanges = 0
        self._fence = threading.Lock()
        self._views: dict[tuple[Any, ...], _Views] = {}
        self._parent = os.getppid()

    def all_gather(
        self, items: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor
    ) -> list[Tensor]:
        return self._exchange(items, self._item_views, tuple(owners), shape, like.dtype)

    def gather_columns(self, parts: Sequence[Tensor], width: int, block: int = 1) -> list[Tensor]:
        return self._exchange(parts, self._column_views, len(parts), len(parts[0]), width, block, parts[0].dtype)

    def _exchange(self, items: Sequence[Tensor], make_views: Callable[..., _Views], *layout: Any) -> list[Tensor]:
        self._exchanges += 1
        half = self._exchanges & 1
        key = half, *layout
        views = self._views.get(key)
        if views is None:  # slicing takes longer than the exchange itself
            if len(self._views) >= MAX_CACHED_VIEWS:
                self._views.clear()
            views = self._views[key] = make_views(*key)
        for view, item in zip(views.own, items, strict=True):
            view.copy_(item)
        cancel = self._cancel_indices[half]
        if self.rank == 0:
            self._counters[cancel] = self.should_cancel is not None and self.should_cancel()
        self._synchronize()
        if self._counters[cancel]:
            raise DraftCancelled
        return views.gathered

    def _item_views(self, half: int, owners: tuple[int, ...], shape: torch.Size, dtype: torch.dtype) -> _Views:
        """Views of an `all_gather`: the items of each rank are consecutive in its row of the buffer."""
        item_bytes = shape.numel() * dtype.itemsize
        counts, gathered = [0] * self.size, []
        for owner in owners:
            data = self._data[half, owner, counts[owner] * item_bytes : (counts[owner] + 1) * item_bytes]
            assert data.nbytes == item_bytes, "the shared buffer is too small"
            gathered.append(data.view(dtype).view(shape))
            counts[owner] += 1
        own = [item for item, owner in zip(gathered, owners, strict=True) if owner == self.rank]
        return _Views(own, gathered)

    def _column_views(self, half: int, count: int, tokens: int, width: int, block: int, dtype: torch.dtype) -> _Views:
        """Views of a `gather_columns`: the whole tensors are consecutive, across the rows of the buffer."""
        total_bytes = count * tokens * width * dtype.itemsize
        data = self._data[half].view(-1)[:total_bytes]
        assert data.nbytes == total_bytes, "the shared buffer is too small"
        columns = ShardSpec(self.rank, self.size).rows(width, block)
        gathered = list(data.view(dtype).view(count, tokens, width))
        return _Views([item[:, columns.start : columns.stop] for item in gathered], gathered)

    def _synchronize(self) -> None:
        """Announce this rank's part of the exchange and wait for those of all others."""
        self.heartbeat()
        if NEEDS_FENCE:
            with self._fence:
                pass
        self._counters[self._own_index] = self._exchanges
        for other in self._other_indices:
            spins = 0
            while self._counters[other] < self._exchanges:
                spins += 1
                if spins > SPINS_BEFORE_YIELD:
                    self._wait(other)
                    break
        if NEEDS_FENCE:
            with self._fence:
                pass

    def _wait(self, other: int) -> None:
        """Wait for another rank while yielding the core, until it or the main process is considered dead."""
        deadline = time.monotonic() + self.timeout_seconds
        while self._counters[other] < self._exchanges:
            os.sched_yield()
            if os.getppid() != self._parent:
                raise CommunicationError("the main process is gone")
            if time.monotonic() > deadline:
                rank = other // COUNTER_STRIDE
                raise CommunicationError(f"rank {rank} of the drafter has not answered for {self.timeout_seconds:g} s")
