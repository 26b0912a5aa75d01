"""RankChannel: the processes that torchrun has started act as one, led by the first.

Rank 0 runs the program. The others sit in `follow`: `call` tells them a handler's name and its arguments, and then
every rank, rank 0 included, runs that handler. What it exchanges with its like on the other ranks is its own matter.

    ranks = start_ranks()
    channel = RankChannel(ranks)
    channel.register("add", lambda a, b: a + b)     # the same on every rank
    if ranks.rank > 0:
        channel.follow()                            # until rank 0 closes, or ends
    else:
        print(channel.call("add", 2, 3))

    python -m torch.distributed.run --standalone --nproc_per_node 2 that_file.py

A message is one broadcast of FRAME bytes, unless it is a prompt (`broadcast_object_list` takes two each time, through
the GPU where ranks talk over NCCL). Messages have a gloo group of their own: a follower that waits keeps neither a GPU
nor a core busy, and notices at once when rank 0 has died.
"""

from __future__ import annotations

import atexit
import os
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pdevis.util.errors import ModelLoadError, first_line

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHER_LAUNCHER = "ACCELERATE_MIXED_PRECISION"  # accelerate launch sets torchrun's variables too, for another purpose
MEET_SECONDS = 30.0  # between the first and the last rank that is ready to meet
PATIENCE_SECONDS = 600.0  # the longest silence: a rank that loads its weights, or a forward
FRAME = 1024  # bytes of a message's first broadcast; its own length is in the first LENGTH of them
LENGTH = 8
# gloo's threads hold the tensors of an exchange for a moment longer, and let go of them under the interpreter's lock.
# If the interpreter has ended by then, the process aborts.
GRACE_SECONDS = 0.05
BEAT, CLOSE = "", "close"  # messages that no handler can be named after


class RankError(ModelLoadError):
    """The ranks have lost each other; the message is one line."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device  # this rank's own

    def __str__(self) -> str:
        return f"{self.size} ranks"


def under_torchrun() -> bool:
    """Whether torchrun (or a script that sets the same variables) has started this process together with others."""
    started = all(name in os.environ for name in VARIABLES)
    return started and os.environ["WORLD_SIZE"] != "1" and OTHER_LAUNCHER not in os.environ


def start_ranks(meet_seconds: float = MEET_SECONDS, patience_seconds: float = PATIENCE_SECONDS) -> Ranks:
    """Meet the other ranks, over NCCL with a GPU each where there are GPUs, else over gloo.

    Args:
        meet_seconds: how long to wait for the others to come.
        patience_seconds: how long an exchange among them may take later on.

    Raises:
        ModelLoadError: where a rank does not come, the port is taken, or there are fewer GPUs than ranks.
    """
    rank, local, size = (_number(name) for name in VARIABLES[:3])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and local >= count:
        raise ModelLoadError(f"LOCAL_RANK = {local}: this machine has {count} GPUs, and each rank needs one")
    device, backend = (torch.device("cuda", local), "nccl") if count else (torch.device("cpu"), "gloo")
    if count:
        torch.cuda.set_device(device)
    try:
        store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=meet_seconds)))
        _meet(store, rank, size, meet_seconds)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("pdevis", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience_seconds),
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError, OSError) as why:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ModelLoadError(f"rank {rank} of {size}: cannot meet the others at {place} ({first_line(why)})") from why
    return Ranks(rank, size, device)


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ModelLoadError(f"{name} = {value!r}: must be an integer, as torchrun sets it")
    return int(value)


def _meet(store: Any, rank: int, size: int, seconds: float) -> None:
    """See that everybody is there. The groups' own waiting would have to be as patient as their later exchanges."""
    deadline = time.monotonic() + seconds
    if store.add(f"pdevis/here/{rank}", 1) > 1:
        raise RuntimeError("they have met before; the ranks of one start serve one pair")
    for other in range(size):
        try:
            store.wait([f"pdevis/here/{other}"], timedelta(seconds=max(deadline - time.monotonic(), 0.001)))
        except RuntimeError:
            raise RuntimeError(f"rank {other} has not come within {seconds:g} s") from None


class RankChannel:
    """Handlers that rank 0 can have run on every rank at once. To be made, and filled, alike on every rank.

    While rank 0 does something else, a thread of it says every now and then that it is there: a person may think at the
    prompt for longer than `patience_seconds`, the silence after which a rank counts as lost.
    """

    def __init__(self, ranks: Ranks, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.ranks = ranks
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_seconds))
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._turn = threading.Lock()  # one message at a time, and none while a handler runs
        self._lost = ""  # why the ranks are not in step any more
        self._closed = threading.Event()
        if ranks.rank == 0:
            atexit.register(self.close)
            self._beat = threading.Thread(target=self._keep_alive, args=(patience_seconds / 4,), daemon=True)
            self._beat.start()

    @property
    def alive(self) -> bool:
        """Whether `call` can get through."""
        return not (self._lost or self._closed.is_set())

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """Let `call` run a function under that name. It must not use `call` itself."""
        assert name not in (BEAT, CLOSE, *self._handlers), f"a handler named {name!r} already exists"
        self._handlers[name] = function

    def call(self, name: str, *args: Any) -> Any:
        """On rank 0: run a handler on every rank, with arguments that can be pickled; the result is rank 0's.

        An error of rank 0's handler is raised as it is, and is the end: the other ranks may be anywhere then.

        Raises:
            RankError: where the ranks are closed or have lost each other.
        """
        assert self.ranks.rank == 0, "only rank 0 calls; the others follow"
        function, message = self._handlers[name], pickle.dumps((name, args))
        with self._turn:
            if not self.alive:
                raise RankError(f"the ranks have stopped ({self._lost or 'closed'}): start the program again")
            self._send(message)
            try:
                return function(*args)
            except BaseException as error:
                self._lost = f"after {type(error).__name__} in {name}"
                self._part()
                raise

    def follow(self) -> None:
        """On the other ranks: run what rank 0 calls, until it closes.

        Raises:
            RankError: where rank 0 is gone or silent, or a handler fails here.
        """
        assert self.ranks.rank > 0, "rank 0 leads"
        try:
            while self._obey():
                pass
        finally:
            self._part()
        dist.destroy_process_group()

    def close(self) -> None:
        """Let the others go and leave the process group; also done when rank 0 ends. A second time does nothing."""
        if self.ranks.rank > 0 or self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        self._tell(CLOSE)
        self._beat.join()
        self._part()
        if not self._lost:  # else the others may be in the middle of an exchange, which ends when this process does
            dist.destroy_process_group()

    def _obey(self) -> bool:
        """Do what the next message says; False: it was the last one."""
        trouble = "rank 0 is gone or silent"
        try:
            name, args = pickle.loads(self._receive())
            if name not in (BEAT, CLOSE):
                trouble = f"{name} failed"
                self._handlers[name](*args)
        except Exception as error:
            raise RankError(f"rank {self.ranks.rank}: {trouble} ({first_line(error)})") from error
        return name != CLOSE

    def _part(self) -> None:
        """Close this end of the channel. Whoever waits at another end notices at once."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        time.sleep(GRACE_SECONDS)

    def _keep_alive(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self._tell(BEAT)

    def _tell(self, word: str) -> None:
        with self._turn, suppress(RankError):
            if not self._lost:
                self._send(pickle.dumps((word, ())))

    def _send(self, message: bytes) -> None:
        whole = len(message).to_bytes(LENGTH, "little") + message
        data = torch.frombuffer(bytearray(whole.ljust(FRAME, b"\0")), dtype=torch.uint8)
        try:
            for part in (data[:FRAME], data[FRAME:]) if len(data) > FRAME else (data,):
                dist.broadcast(part, src=0, group=self._group)
        except RuntimeError as error:
            self._lost = f"another rank is gone or silent ({first_line(error)})"
            raise RankError(f"rank 0: {self._lost}") from error

    def _receive(self) -> bytes:
        first = torch.empty(FRAME, dtype=torch.uint8)
        dist.broadcast(first, src=0, group=self._group)
        whole = first.numpy().tobytes()
        end = LENGTH + int.from_bytes(whole[:LENGTH], "little")
        if end > FRAME:
            rest = torch.empty(end - FRAME, dtype=torch.uint8)
            dist.broadcast(rest, src=0, group=self._group)
            whole += rest.numpy().tobytes()
        return whole[LENGTH:end]
