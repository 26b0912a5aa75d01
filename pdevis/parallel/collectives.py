"""Collectives between the worker processes ("ranks") of one drafter: all-gather, in three implementations.

`SharedMemoryCommunicator` (shared_memory.py) is for CPU cores of one machine. `DistributedCommunicator` is
torch.distributed: NCCL between GPUs, gloo between CPU processes. `SingleProcess` is for a drafter with one worker.
Between two cores an exchange takes a few µs through shared memory and a few hundred µs through gloo, which is as long
as a sublayer of a small drafter (tools/bench_collectives.py).

Shapes: T = tokens of a forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.layers import ShardSpec


class DraftCancelled(Exception):
    """The draft in progress is not needed any more. Raised on all ranks at the same exchange."""


class CommunicationError(ConnectionError):
    """Another rank does not answer."""


class Communicator(Protocol):
    """One rank's end of the exchanges among `size` ranks.

    A computation is cancellable while `cancellable` is True, which must be set alike on all ranks. Rank 0 then calls
    `should_cancel` (if it is set) at the exchanges; True raises `DraftCancelled` on all ranks.
    """

    rank: int
    size: int
    fast: bool  # True if an exchange takes a small part of a sublayer's time
    cancellable: bool
    should_cancel: Callable[[], bool] | None

    def all_gather(
        self, items: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor
    ) -> list[Tensor]:
        """Return the items of all ranks; item i has the given shape and comes from rank owners[i].

        The returned tensors alias internal buffers; clone them to keep them past the next call.

        Args:
            items: those that this rank owns, in order.
            owners: the rank that each item comes from, alike on all ranks.
            shape: shape of each item.
            like: a tensor of the items' dtype and device.

        Raises:
            DraftCancelled: rank 0 cancels the draft in progress.
            CommunicationError: another rank does not answer.
        """
        ...

    def gather_columns(self, parts: Sequence[Tensor], width: int, block: int = 1) -> list[Tensor]:
        """Return whole tensors [T, width], of which this rank has the columns `ShardSpec.rows(width, block)`.

        Same aliasing and errors as `all_gather`.
        """
        ...


def broadcast(communicator: Communicator, tensor: Tensor) -> Tensor:
    """Return rank 0's tensor on all ranks, as a copy."""
    items = [tensor] if communicator.rank == 0 else []
    return communicator.all_gather(items, [0], tensor.shape, tensor)[0].clone()


class SingleProcess:
    """The `Communicator` of a single rank: sends a heartbeat and checks for cancellation at each "exchange"."""

    rank, size, fast = 0, 1, False

    def __init__(self, heartbeat: Callable[[], None]) -> None:
        self.heartbeat = heartbeat
        self.should_cancel: Callable[[], bool] | None = None
        self.cancellable = False

    def all_gather(
        self, items: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor
    ) -> list[Tensor]:
        self.heartbeat()
        if self.should_cancel and self.should_cancel():
            raise DraftCancelled
        return list(items)

    def gather_columns(self, parts: Sequence[Tensor], width: int, block: int = 1) -> list[Tensor]:
        return self.all_gather(parts, [0] * len(parts), parts[0].shape, parts[0])


class DistributedCommunicator:
    """A `Communicator` through torch.distributed: an all-reduce of zeros into which each rank has copied its items.

    Cancellation is checked only if rank 0 alone contributes integers (`broadcast`): elsewhere it would need an exchange
    of its own.
    """

    fast = False

    def __init__(self, rank: int, size: int, heartbeat: Callable[[], None]) -> None:
        self.rank, self.size = rank, size
        self.heartbeat = heartbeat
        self.should_cancel: Callable[[], bool] | None = None
        self.cancellable = False

    def all_gather(
        self, items: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor
    ) -> list[Tensor]:
        self.heartbeat()
        gathered = torch.zeros(len(owners), *shape, dtype=like.dtype, device=like.device)
        own_items = iter(items)
        for index, owner in enumerate(owners):
            if owner == self.rank:
                gathered[index] = next(own_items)
        checks_cancel = self.cancellable and not like.is_floating_point()
        if checks_cancel and self.rank == 0 and self.should_cancel and self.should_cancel():
            gathered.fill_(-1)
        try:
            torch.distributed.all_reduce(gathered)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CommunicationError(f"another rank of the drafter does not answer ({reason})") from error
        if checks_cancel and bool((gathered < 0).any()):
            raise DraftCancelled
        return list(gathered.unbind())

    def gather_columns(self, parts: Sequence[Tensor], width: int, block: int = 1) -> list[Tensor]:
        widths = [len(ShardSpec(rank, self.size).rows(width, block)) for rank in range(self.size)]
        padded = [F.pad(part, (0, max(widths) - part.shape[1])) for part in parts]
        owners = [rank for rank in range(self.size) for _ in parts]
        gathered = self.all_gather(padded, owners, padded[0].shape, padded[0])
        trimmed = [part[:, : widths[rank]] for part, rank in zip(gathered, owners, strict=True)]
        return [torch.cat(trimmed[index :: len(parts)], dim=1) for index in range(len(parts))]
