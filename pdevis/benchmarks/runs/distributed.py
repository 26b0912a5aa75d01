"""The processes of one run: `accelerate launch --num_processes N …` starts N that divide the work; without it, one.

They communicate over gloo, whatever devices the models use: gloo costs nothing while they work, and a process that has
finished early waits without keeping a device busy.

    with process_group(args) as env:
        todo = env.split(units)
"""

from __future__ import annotations

import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pdevis.cli import on_ranks

T = TypeVar("T")
MAX_WAIT = timedelta(days=30)  # the slowest process may need this much longer than the fastest

SINGLE_PROCESS_NOTE = (
    "note: accelerate has started only one process, as it does without several GPUs; "
    "for N processes on a CPU or one GPU: accelerate launch --multi_gpu --num_processes N …"
)


@dataclass(frozen=True)
class DistEnv:
    """This process among the processes of the run.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def split(self, units: list[int], group: int = 1) -> list[int]:
        """This process's part of the units; units of the same group (number // group) stay together."""
        groups = sorted({unit // group for unit in units})
        own = set(groups[self.rank :: self.size])
        return [unit for unit in units if unit // group in own]

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank; waits for all of them."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def shared_seed(self) -> int:
        """A fresh seed, the same in all processes."""
        return self.gather(secrets.randbelow(2**31))[0]

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Call `work` in every process, and continue only if it succeeds in all; the first error is reported once.

        Raises:
            ValueError, OSError: the error of `work` in the first process in which it failed. SystemExit: in all
                processes but the main one, which reports the error.
        """
        result: Any = None
        failure: tuple[bool, str] | None = None  # (is it the user's mistake, message)
        try:
            result = work()
        except (ValueError, OSError) as error:
            if self.size == 1:
                raise
            failure = isinstance(error, ValueError), str(error)
        first = next((failed for failed in self.gather(failure) if failed), None)
        if first is None:
            return result
        is_mistake, message = first
        if not self.is_main:
            raise SystemExit(2 if is_mistake else 1)
        raise ValueError(message) if is_mistake else OSError(message)

    def device(self, flag: str | None, fallback: str | None = None) -> str | None:
        """The device of this process, of those that a flag names.

        A comma list names one for each process of a machine. Without any flag, and with several processes and several
        GPUs, each process takes another GPU.

        Raises:
            ValueError: for a list of another length than the number of processes of a machine.
        """
        if flag and "," in flag:
            names = [name.strip() for name in flag.split(",")]
            local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
            if len(names) != local_size:
                raise ValueError(f"device = {flag!r}: must name one device, or one for each of {local_size} processes")
            return names[self.local_rank]
        if flag or fallback or self.size == 1:
            return flag
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{self.local_rank % count}" if count else None


def join_processes(args: Namespace) -> DistEnv:
    """Connect to the other processes that the launcher has started, according to its environment variables.

    The ranks of one target (--target_device ranks) count as a single process here.
    """
    if on_ranks(args):
        return DistEnv()
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
            print(SINGLE_PROCESS_NOTE, file=sys.stderr)
        return DistEnv()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=MAX_WAIT)
    return DistEnv(state.process_index, state.num_processes, state.local_process_index)


@contextmanager
def process_group(args: Namespace) -> Iterator[DistEnv]:
    """Connect to the other processes, and disconnect when the block ends without an error."""
    env = join_processes(args)
    yield env
    if env.size > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
