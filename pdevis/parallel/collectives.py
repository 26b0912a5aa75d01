"""How the ranks of a drafter exchange what each of them has computed: two operations, in two implementations.

`SharedMemory` (board.py) is for CPU cores of one machine. `ProcessGroup` is torch.distributed: NCCL between GPUs, gloo
between CPU processes. Between two cores an exchange takes a few µs through shared memory and some hundred through gloo,
as long as a small drafter's sublayer (tools/bench_collectives.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.models.layers import ShardSpec


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
    fast: bool  # whether an exchange takes a small part of a sublayer's time
    unwanted: Callable[[], bool] | None
    dropping: bool  # whether what is computed may be dropped, alike on all ranks

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        """Every item, where item i of that shape comes from rank owners[i] and `mine` are this rank's, in order.

        The items stand where they are until the next exchange: what is to last is copied.

        Args:
            like: a tensor of the items' dtype and device.

        Raises:
            Dropped: where rank 0 says so. LinkError: another rank does not answer.
        """
        ...

    def join(self, mine: Sequence[Tensor], size: int, block: int = 1) -> list[Tensor]:
        """Whole tensors [T, size] from this rank's columns of each, `ShardSpec.rows(size, block)`, and all others'.

        Where they stand, and what is raised: as for `share`.
        """
        ...


class Alone:
    """No other rank: nothing to exchange. It still says when work is dropped, and that this process is alive."""

    rank, size, fast = 0, 1, False

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat = beat
        self.unwanted: Callable[[], bool] | None = None
        self.dropping = False

    def share(self, mine: Sequence[Tensor], owners: Sequence[int], shape: torch.Size, like: Tensor) -> list[Tensor]:
        self.beat()
        if self.unwanted and self.unwanted():
            raise Dropped
        return list(mine)

    def join(self, mine: Sequence[Tensor], size: int, block: int = 1) -> list[Tensor]:
        return self.share(mine, [], mine[0].shape, mine[0])


class ProcessGroup:
    """A `Link` through torch.distributed: each rank fills in its items, and one all-reduce adds up zeros and items.

    Dropping is looked at where rank 0 alone contributes integers (`broadcast_token`): elsewhere it costs an exchange.
    """

    fast = False

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

    def join(self, mine: Sequence[Tensor], size: int, block: int = 1) -> list[Tensor]:
        widths = [len(ShardSpec(rank, self.size).rows(size, block)) for rank in range(self.size)]
        most, count = max(widths), len(mine)
        padded = [F.pad(part, (0, most - part.shape[1])) for part in mine]
        owners = [rank for rank in range(self.size) for _ in mine]
        parts = self.share(padded, owners, padded[0].shape, padded[0])
        parts = [part[:, : widths[rank]] for part, rank in zip(parts, owners, strict=True)]
        return [torch.cat(parts[item::count], dim=1) for item in range(count)]
