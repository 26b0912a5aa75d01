"""The processes of one run: `accelerate launch --num_processes N …` starts N that share the work; alone there is one.

They talk over gloo, whatever the models run on: it costs nothing while they work, and a process that is done early
waits without keeping a device busy.
"""

from __future__ import annotations

import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pdevis.cli import on_ranks

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # the slowest process may need that much longer than the fastest

ONE_ONLY = (
    "note: accelerate has started one process only, as it does without several GPUs; "
    "for N processes on a CPU or one GPU: accelerate launch --multi_gpu --num_processes N …"
)


@dataclass(frozen=True)
class World:
    """This process among those of the run. `local_rank` counts on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, units: list[int], group: int = 1) -> list[int]:
        """This process's part of the units; those of one group (numbers // group) stay together."""
        groups = sorted({unit // group for unit in units})
        mine = set(groups[self.rank :: self.size])
        return [unit for unit in units if unit // group in mine]

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order; waits for all of them."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def seed(self) -> int:
        """A fresh seed, the same in all processes."""
        return self.gather(secrets.randbelow(2**31))[0]

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` in every process, and go on only if all could; the first mistake is reported once.

        Raises:
            ValueError, OSError: what `work` raised in the first process where it did. SystemExit: in all processes but
                the main one, which speaks for them.
        """
        result: Any = None
        trouble: tuple[bool, str] | None = None
        try:
            result = work()
        except (ValueError, OSError) as error:
            if self.size == 1:
                raise
            trouble = isinstance(error, ValueError), str(error)
        first = next((each for each in self.gather(trouble) if each), None)
        if first is None:
            return result
        users, message = first
        if not self.main:
            raise SystemExit(2 if users else 1)
        raise ValueError(message) if users else OSError(message)

    def device(self, flag: str | None, fallback: str | None = None) -> str | None:
        """The device that a flag names for this process.

        A comma list names one for each process of a machine. No flag at all, several processes and several GPUs: each
        process takes its own.

        Raises:
            ValueError: for a list that has another length than the processes of a machine.
        """
        if flag and "," in flag:
            names = [name.strip() for name in flag.split(",")]
            local = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
            if len(names) != local:
                raise ValueError(f"device = {flag!r}: must name one device, or one for each of {local} processes")
            return names[self.local_rank]
        if flag or fallback or self.size == 1:
            return flag
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{self.local_rank % count}" if count else None


def join_world(args: Namespace) -> World:
    """This process's place, from what the launcher has left in the environment. Ranks that share one target, with
    --target_device ranks, are one process to all who share work."""
    if on_ranks(args):
        return World()
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
            print(ONE_ONLY, file=sys.stderr)
        return World()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=PATIENCE)
    return World(state.process_index, state.num_processes, state.local_process_index)


def leave_world(world: World) -> None:
    """Close the connections between the processes."""
    if world.size > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
