"""RankChannel: remote procedure calls from rank 0 to all the ranks that torchrun has started.

Rank 0 runs the program. The others loop in `follow`: `call` sends them a handler's name and its arguments, and then
every rank, rank 0 included, runs that handler. Handlers may use collectives of their own.

    ranks = start_ranks()
    channel = RankChannel(ranks)
    channel.register("add", lambda a, b: a + b)     # the same on every rank
    if ranks.rank > 0:
        channel.follow()                            # until rank 0 closes, or ends
    else:
        print(channel.call("add", 2, 3))

    python -m torch.distributed.run --standalone --nproc_per_node 2 that_file.py

A message is one broadcast of FRAME_BYTES, or two if it is longer, as a prompt is (`broadcast_object_list` always takes
two, and goes through the GPU with NCCL). Messages have a separate gloo group: a follower that waits keeps neither a GPU
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

from pdevis.util.validation import ModelLoadError, first_line

TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ACCELERATE_VARIABLE = "ACCELERATE_MIXED_PRECISION"  # set by accelerate launch, which sets torchrun's variables as well
RENDEZVOUS_SECONDS = 30.0  # between the first and the last rank that connects
TIMEOUT_SECONDS = 600.0  # the longest time without a message: a rank loads its weights, or a long forward
FRAME_BYTES = 1024  # size of a message's first broadcast, whose first LENGTH_BYTES are the message's length
LENGTH_BYTES = 8
# gloo's threads keep the tensors of a collective a moment longer, and need the GIL to release them. If the interpreter
# has shut down by then, the process aborts.
GLOO_RELEASE_SECONDS = 0.05
HEARTBEAT, CLOSE = "", "close"  # messages; no handler can have these names


class RankError(ModelLoadError):
    """A rank of torchrun has failed or closed; the message is one line."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, the number of ranks, and this rank's device."""

    rank: int
    size: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.size} ranks"


def under_torchrun() -> bool:
    """True if torchrun (or a script that sets the same variables) has started several processes."""
    started = all(name in os.environ for name in TORCHRUN_VARIABLES)
    return started and os.environ["WORLD_SIZE"] != "1" and ACCELERATE_VARIABLE not in os.environ


def start_ranks(rendezvous_seconds: float = RENDEZVOUS_SECONDS, timeout_seconds: float = TIMEOUT_SECONDS) -> Ranks:
    """Initialise the process group: NCCL with one GPU per rank if there are GPUs, else gloo.

    Args:
        rendezvous_seconds: how long to wait for the other ranks to connect.
        timeout_seconds: how long a collective may take later.

    Raises:
        ModelLoadError: a rank does not connect, the port is in use, or there are fewer GPUs than ranks.
    """
    rank, local_rank, size = (_read_integer(name) for name in TORCHRUN_VARIABLES[:3])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and local_rank >= gpus:
        raise ModelLoadError(f"LOCAL_RANK = {local_rank}: this machine has {gpus} GPUs, and each rank needs one")
    device, backend = (torch.device("cuda", local_rank), "nccl") if gpus else (torch.device("cpu"), "gloo")
    if gpus:
        torch.cuda.set_device(device)
    try:
        store, *_ = next(dist.rendezvous("env://", rank, size, timeout=timedelta(seconds=rendezvous_seconds)))
        _wait_for_all_ranks(store, rank, size, timeout_seconds=rendezvous_seconds)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("pdevis", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = first_line(error)
        raise ModelLoadError(f"rank {rank} of {size}: cannot connect to the others at {address} ({reason})") from error
    return Ranks(rank, size, device)


def _read_integer(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ModelLoadError(f"{name} = {value!r}: must be an integer, as torchrun sets it")
    return int(value)


def _wait_for_all_ranks(store: Any, rank: int, size: int, *, timeout_seconds: float) -> None:
    """Wait until every rank has connected to the store.

    Without this, a missing rank would be noticed only after the process group's own, much longer, timeout.
    """
    deadline = time.monotonic() + timeout_seconds
    if store.add(f"pdevis/connected/{rank}", 1) > 1:
        raise RuntimeError("process group already initialised: one pair per torchrun launch")
    for other in range(size):
        try:
            remaining_seconds = max(deadline - time.monotonic(), 0.001)
            store.wait([f"pdevis/connected/{other}"], timedelta(seconds=remaining_seconds))
        except RuntimeError:
            raise RuntimeError(f"rank {other} has not connected within {timeout_seconds:g} s") from None


class RankChannel:
    """Handlers that rank 0 can run on every rank at once. Every rank creates it and registers the same handlers.

    A thread of rank 0 sends heartbeats between calls: a user may think at the prompt for longer than `timeout_seconds`,
    after which a rank that sends nothing counts as lost.
    """

    def __init__(self, ranks: Ranks, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.ranks = ranks
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()  # held while a message is sent and while its handler runs
        self._failure = ""  # why the ranks are out of step
        self._closed = threading.Event()
        if ranks.rank == 0:
            atexit.register(self.close)
            interval_seconds = timeout_seconds / 4
            self._heartbeat = threading.Thread(target=self._send_heartbeats, args=(interval_seconds,), daemon=True)
            self._heartbeat.start()

    @property
    def alive(self) -> bool:
        """True if `call` can reach the other ranks."""
        return not (self._failure or self._closed.is_set())

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """Let `call` run a function under that name. The function must not use `call` itself."""
        assert name not in (HEARTBEAT, CLOSE, *self._handlers), f"a handler named {name!r} already exists"
        self._handlers[name] = function

    def call(self, name: str, *args: Any) -> Any:
        """On rank 0: run a handler on every rank, with arguments that can be pickled; return rank 0's result.

        An error of rank 0's handler is raised unchanged and disconnects the ranks, since their states may differ now.

        Raises:
            RankError: the channel is closed, or another rank has failed.
        """
        assert self.ranks.rank == 0, "only rank 0 calls; the others follow"
        function, message = self._handlers[name], pickle.dumps((name, args))
        with self._lock:
            if not self.alive:
                raise RankError(f"the ranks have stopped ({self._failure or 'closed'}): start the program again")
            self._send(message)
            try:
                return function(*args)
            except BaseException as error:
                self._failure = f"after {type(error).__name__} in {name}"
                self._disconnect()
                raise

    def follow(self) -> None:
        """On the other ranks: run what rank 0 calls, until it closes.

        Raises:
            RankError: rank 0 is gone or silent, or a handler fails here.
        """
        assert self.ranks.rank > 0, "rank 0 calls; it cannot follow"
        try:
            while self._handle_message():
                pass
        finally:
            self._disconnect()
        dist.destroy_process_group()

    def close(self) -> None:
        """On rank 0: let the others end, and destroy the process group; does nothing if closed. Also called when the
        interpreter exits."""
        if self.ranks.rank > 0 or self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        self._send_control(CLOSE)
        self._heartbeat.join()
        self._disconnect()
        if not self._failure:  # else the others may be in the middle of a collective, which this process's exit ends
            dist.destroy_process_group()

    def _handle_message(self) -> bool:
        """Receive a message and run its handler; return False after the last message."""
        problem = "rank 0 is gone or silent"
        try:
            name, args = pickle.loads(self._receive())
            if name not in (HEARTBEAT, CLOSE):
                problem = f"{name} failed"
                self._handlers[name](*args)
        except Exception as error:
            raise RankError(f"rank {self.ranks.rank}: {problem} ({first_line(error)})") from error
        return name != CLOSE

    def _disconnect(self) -> None:
        """Close this end of the channel. A rank that waits at another end notices at once."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        time.sleep(GLOO_RELEASE_SECONDS)

    def _send_heartbeats(self, interval_seconds: float) -> None:
        while not self._closed.wait(interval_seconds):
            self._send_control(HEARTBEAT)

    def _send_control(self, name: str) -> None:
        """Send a message without a handler, unless the ranks are out of step."""
        with self._lock, suppress(RankError):
            if not self._failure:
                self._send(pickle.dumps((name, ())))

    def _send(self, message: bytes) -> None:
        framed = len(message).to_bytes(LENGTH_BYTES, "little") + message
        data = torch.frombuffer(bytearray(framed.ljust(FRAME_BYTES, b"\0")), dtype=torch.uint8)
        parts = (data[:FRAME_BYTES], data[FRAME_BYTES:]) if len(data) > FRAME_BYTES else (data,)
        try:
            for part in parts:
                dist.broadcast(part, src=0, group=self._group)
        except RuntimeError as error:
            self._failure = f"another rank is gone or silent ({first_line(error)})"
            raise RankError(f"rank 0: {self._failure}") from error

    def _receive(self) -> bytes:
        frame = torch.empty(FRAME_BYTES, dtype=torch.uint8)
        dist.broadcast(frame, src=0, group=self._group)
        framed = frame.numpy().tobytes()
        end = LENGTH_BYTES + int.from_bytes(framed[:LENGTH_BYTES], "little")
        if end > FRAME_BYTES:
            rest = torch.empty(end - FRAME_BYTES, dtype=torch.uint8)
            dist.broadcast(rest, src=0, group=self._group)
            framed += rest.numpy().tobytes()
        return framed[LENGTH_BYTES:end]
