"""The life of one worker process of a drafter, from loading its shard of the weights to its exit.

The main process sends one small request per round to every rank. All ranks run the same operation; rank 0 replies, and
looks for the next request while it drafts ahead.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from pdevis.devices import DeviceSlot
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.models.layers import ShardSpec
from pdevis.parallel.collectives import Communicator, DistributedCommunicator, SingleProcess
from pdevis.parallel.draft_service import DraftService
from pdevis.parallel.shared_memory import Heartbeat, MessageCounter, SharedBuffer, SharedMemoryCommunicator

SHARED_MEMORY = "shared"  # the transport between CPU cores; others are backends of torch.distributed
PARENT_POLL_SECONDS = 1.0  # interval between checks that the main process is alive


class Request(NamedTuple):
    """A message from the main process to every rank: an operation of `DraftService`."""

    number: int  # 1, 2, ...
    operation: str
    arguments: tuple[Any, ...]


class Reply(NamedTuple):
    """A message to the main process: an operation's result, or number 0 with a `WorkerInfo` or a `WorkerFailure`."""

    number: int
    value: Any


@dataclass(frozen=True)
class WorkerSpec:
    """Start-up arguments of a worker process."""

    rank: int
    device_slot: DeviceSlot
    load_spec: LoadSpec
    target_vocab: int
    buffer: SharedBuffer
    transport: str
    rendezvous_file: str  # through which the ranks of torch.distributed find each other
    timeout_seconds: float
    static_shapes: bool
    min_ahead_probability: float


@dataclass(frozen=True)
class WorkerInfo:
    """Facts about a loaded drafter that the main process needs."""

    vocab_size: int
    context_length: int


@dataclass(frozen=True)
class WorkerFailure:
    """An error that ended a worker."""

    error: str  # name of the exception's class
    message: str = ""  # its first line
    rank: int | None = None  # None: unknown


def run_worker(spec: WorkerSpec, connection: Connection) -> None:
    """Run one rank until the main process closes its end of the connection, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    _exit_with_main_process(spec.rendezvous_file)
    try:
        spec.device_slot.activate()
        worker = Worker(spec, connection)
        model = worker.service.model
        connection.send(Reply(0, WorkerInfo(model.vocab_size, model.context_length)))
        worker.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the main process has closed its end
        pass
    except BaseException as error:  # the main process must learn of any error
        first_line = (str(error).strip().splitlines() or [""])[0]
        with suppress(OSError):
            connection.send(Reply(0, WorkerFailure(type(error).__name__, first_line, spec.rank)))
    _exit(spec.rendezvous_file, 0)


def _exit_with_main_process(rendezvous_file: str) -> None:
    """Start a thread that ends this process once the main process is gone, even if it is gone already."""
    main_pid = multiprocessing.parent_process().pid

    def poll() -> None:
        while os.getppid() == main_pid:  # an orphan gets another parent
            time.sleep(PARENT_POLL_SECONDS)
        _exit(rendezvous_file, 1)

    threading.Thread(target=poll, daemon=True).start()


def _exit(rendezvous_file: str, code: int) -> NoReturn:
    """Exit immediately (os._exit): at a normal exit NCCL and gloo may wait for their peers."""
    shutil.rmtree(Path(rendezvous_file).parent, ignore_errors=True)
    os._exit(code)


class Worker:
    """One rank's `DraftService`, and its loop over the requests of the main process."""

    def __init__(self, spec: WorkerSpec, connection: Connection) -> None:
        self.connection = connection
        self.unhandled: list[Request] = []  # at most one, received while drafting ahead
        self.messages = MessageCounter(spec.buffer)
        communicator = _connect(spec)
        self.is_first = communicator.rank == 0
        shard = ShardSpec(spec.rank, spec.buffer.size, split_mlps=communicator.fast)
        load_spec = replace(spec.load_spec, device=spec.device_slot.device)
        self.service = DraftService(
            build_model(load_spec, shard, static_shapes=spec.static_shapes),
            communicator,
            target_vocab=spec.target_vocab,
            head_rows=load_spec.head_rows,
            min_ahead_probability=spec.min_ahead_probability,
        )

    def serve(self) -> None:
        """Handle requests until the connection is closed (EOFError)."""
        while True:
            request = self._next_request()
            value = self.service.dispatch(request.operation, *request.arguments)
            if self.is_first:
                self.connection.send(Reply(request.number, value))
            self.service.draft_ahead(self._invalidates_ahead if self.is_first else None)

    def _invalidates_ahead(self) -> bool:
        """True if the pending request invalidates the draft in progress."""
        if not self.unhandled and self.messages.message_pending():
            self.unhandled.append(self._receive())
        if not self.unhandled or self.service.ahead is None:
            return False
        request = self.unhandled[0]
        if request.operation != "draft":
            return True
        added = request.arguments[0]
        return self.service.ahead.assumed != [*self.service.confirmed, *added]

    def _next_request(self) -> Request:
        if self.unhandled:
            return self.unhandled.pop()
        begin = time.perf_counter()
        request = self._receive()
        self.service.idle_seconds += time.perf_counter() - begin
        return request

    def _receive(self) -> Request:
        request = self.connection.recv()
        self.messages.count_received()
        return request


def _connect(spec: WorkerSpec) -> Communicator:
    """Connect this rank with the others."""
    size, heartbeat = spec.buffer.size, Heartbeat(spec.buffer, spec.rank).beat
    if size == 1:
        return SingleProcess(heartbeat)
    if spec.transport == SHARED_MEMORY:
        return SharedMemoryCommunicator(
            spec.buffer, spec.rank, timeout_seconds=spec.timeout_seconds, heartbeat=heartbeat
        )
    torch.distributed.init_process_group(
        spec.transport,
        init_method=f"file://{spec.rendezvous_file}",
        rank=spec.rank,
        world_size=size,
        timeout=timedelta(seconds=spec.timeout_seconds),
    )
    return DistributedCommunicator(spec.rank, size, heartbeat)
