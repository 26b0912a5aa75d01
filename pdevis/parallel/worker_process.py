"""A drafter in a process of its own: what such a process does, from loading its share of the weights to its end.

The main process sends one small message a round. All ranks get it and do the same; rank 0 answers, and looks for the
next message while drafting ahead.
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
from typing import Any, NoReturn

import torch

from pdevis.devices import DeviceSlot
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.models.layers import ShardSpec
from pdevis.parallel.collectives import Alone, Link, ProcessGroup
from pdevis.parallel.draft_service import DraftService
from pdevis.parallel.shared_memory import Board, SharedMemory, Signs

SHARED = "shared"  # the transport between CPU cores; otherwise a backend of torch.distributed
WATCH_SECONDS = 1.0  # between two looks whether the main process is there

Message = tuple[str, int, tuple[Any, ...]]  # operation, number, arguments
Told = tuple[str, str, int | None]  # what went wrong: the kind of error, its text, the rank


@dataclass(frozen=True)
class Seat:
    """Everything that one rank is told when it starts."""

    rank: int
    place: DeviceSlot
    plan: LoadSpec
    target_vocab: int
    board: Board
    transport: str
    rendezvous: str  # file through which the ranks of torch.distributed find each other
    timeout: float
    compile: bool
    ahead_least: float


@dataclass(frozen=True)
class Ready:
    """What a rank says of its drafter when it is loaded."""

    vocab_size: int
    context_length: int


def run_rank(seat: Seat, mail: Connection) -> None:
    """The whole life of one rank. Ends when the main process closes its end of `mail`, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _watch(seat.rendezvous)
    try:
        seat.place.activate()
        server = Server(seat, mail)
        model = server.service.model
        mail.send(("ready", 0, Ready(model.vocab_size, model.context_length)))
        server.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the main process has closed its end
        pass
    except BaseException as error:  # whatever it is, the main process has to hear of it
        told = str(error).strip().splitlines() or [""]
        with suppress(OSError):
            mail.send(("error", 0, (type(error).__name__, told[0], seat.rank)))
    _leave(seat.rendezvous, 0)


def _watch(rendezvous: str) -> None:
    """End this process where the main process is gone. It may be gone already, then another is the parent."""
    parent = multiprocessing.parent_process().pid

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        _leave(rendezvous, 1)

    threading.Thread(target=look, daemon=True).start()


def _leave(rendezvous: str, code: int) -> NoReturn:
    """End here and now: NCCL and gloo may wait for their peers at exit. All ranks end with the first one."""
    shutil.rmtree(Path(rendezvous).parent, ignore_errors=True)
    os._exit(code)


class Server:
    """One rank's service, and the messages that it obeys."""

    def __init__(self, seat: Seat, mail: Connection) -> None:
        self.mail = mail
        self.inbox: list[Message] = []
        self.signs = Signs(seat.board, seat.rank)
        link = _connect(seat, self.signs)
        self.first = link.rank == 0
        plan = replace(seat.plan, device=seat.place.device)
        model = build_model(plan, ShardSpec(seat.rank, seat.board.size, split_mlps=link.fast), compile=seat.compile)
        self.service = DraftService(model, link, seat.target_vocab, seat.plan.head_rows, seat.ahead_least)

    def serve(self) -> None:
        while True:
            operation, number, arguments = self._next()
            value = self.service.obey(operation, *arguments)
            if self.first:
                self.mail.send(("done", number, value))
            self.service.look_ahead(self._refuted if self.first else None)

    def _refuted(self) -> bool:
        """Whether the main process has said something else than what is being drafted for."""
        if not self.inbox and self.signs.mail_waits():
            self.inbox.append(self._receive())
        if not self.inbox or self.service.ahead is None:
            return False
        operation, _, arguments = self.inbox[0]
        return operation != "draft" or not self.service.ahead.confirmed_by([*self.service.confirmed, *arguments[0]])

    def _next(self) -> Message:
        if self.inbox:
            return self.inbox.pop()
        begin = time.perf_counter()
        message = self._receive()
        self.service.idle += time.perf_counter() - begin
        return message

    def _receive(self) -> Message:
        message = self.mail.recv()
        self.signs.mail_read()
        return message


def _connect(seat: Seat, signs: Signs) -> Link:
    size = seat.board.size
    if size == 1:
        return Alone(signs.beat)
    if seat.transport == SHARED:
        return SharedMemory(seat.board, seat.rank, seat.timeout, signs.beat)
    torch.distributed.init_process_group(
        seat.transport,
        init_method=f"file://{seat.rendezvous}",
        rank=seat.rank,
        world_size=size,
        timeout=timedelta(seconds=seat.timeout),
    )
    return ProcessGroup(seat.rank, size, signs.beat)
