"""The processes of a drafter that runs beside the main one: started, spoken to, watched and stopped from here.

One process a device; rank 0 answers. Death, an error or no sign of life of one ends all and is one `WorkerError`.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch import multiprocessing

from pdevis.devices import DeviceSlot
from pdevis.loading.model_builder import LoadSpec, check_lanes
from pdevis.loading.weight_reader import unsupported_reason
from pdevis.models.causal_lm import CHUNK
from pdevis.models.linear import storage_dtype
from pdevis.parallel.draft_service import AHEAD_LEAST
from pdevis.parallel.ipc import interrupts_later, patient_pipe, start_deaf
from pdevis.parallel.shared_memory import Board
from pdevis.parallel.worker_process import SHARED, Ready, Seat, Told, run_rank
from pdevis.util.errors import ModelLoadError

LOAD_SECONDS = 1800.0  # for a drafter's weights to be there
TIMEOUT = 30.0  # seconds without a sign of life; one is given at every sublayer
WHOLE_TIMEOUT = 300.0  # the same, where one is given at every forward, or forwards are compiled
LOOK = 0.5  # seconds between two looks at the signs of life
STOP_SECONDS = 1.0  # for a process to end by itself
CLOSING = 2**62  # "letters sent", when no more will come


class WorkerError(ConnectionError):
    """The drafter's processes are gone; the message says why."""


class WorkerPool:
    """The running processes of one drafter.

    Args:
        plan: the drafter.
        places: a device for each process, the first of which answers.
        target_vocab: ids from here on are never proposed.
        transport: "shared", "gloo" or "nccl"; None: shared memory between CPU cores, nccl between GPUs.
        compile: as for `load_pair`.
        ahead_least: as for `DraftService`.
        timeout: seconds without a sign of life after which a process counts as hung; None: as its forwards allow.

    Raises:
        ModelLoadError: where the drafter cannot be loaded there. WorkerError: a process dies on the way.
    """

    concurrent = True  # works while the main process does

    def __init__(
        self,
        plan: LoadSpec,
        places: Sequence[DeviceSlot],
        target_vocab: int,
        transport: str | None = None,
        compile: bool = False,
        timeout: float | None = None,
        ahead_least: float = AHEAD_LEAST,
    ) -> None:
        self.plan, self.target_vocab, self.compile = plan, target_vocab, compile
        self.places = list(places)
        self.devices = len(places)
        self.has_sublayer_access = not unsupported_reason(plan.config)  # whether its sublayers are
        self.timeout = timeout or (TIMEOUT if self.has_sublayer_access and not compile else WHOLE_TIMEOUT)
        self.number = self.answered = 0  # the last message, and the last one known to be answered
        transport = transport or ("nccl" if places[0].device.type == "cuda" else SHARED)
        self.cut = transport == SHARED and len(places) > 1  # the MLPs, by rows
        self.board = Board(len(places), room_of(plan, len(places)) if self.cut else 0)
        self._numbers = self.board.numbers()
        folder = tempfile.mkdtemp(prefix="pdevis-")
        context = multiprocessing.get_context("spawn")
        self.mail: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self._end = weakref.finalize(self, _stop, self.processes, self.mail, self._numbers, self.board.sent, folder)
        meeting = str(Path(folder) / "ranks")
        common = plan, target_vocab, self.board, transport, meeting, self.timeout, compile, ahead_least
        try:
            for rank, place in enumerate(places):
                ours, theirs = patient_pipe(context, self.timeout)
                self.mail.append(ours)
                seat = Seat(rank, place, *common)
                process = context.Process(target=run_rank, args=(seat, theirs), daemon=True, name=f"pdevis-{place}")
                self.processes.append(process)
                start_deaf(process)
                theirs.close()
            self.ready: Ready = self._receive(range(len(places)), 0, LOAD_SECONDS)
        except BaseException:
            self.close()
            raise

    def again_on(self, places: Sequence[DeviceSlot]) -> WorkerPool:
        """The same drafter once more, elsewhere."""
        check_lanes(",".join(map(str, places)), places, self.plan.config)
        return WorkerPool(replace(self.plan, device=places[0].device), places, self.target_vocab, compile=self.compile)

    @property
    def alive(self) -> bool:
        return self._end.alive

    def send(self, operation: str, *arguments: Any) -> int:
        """Tell all ranks to do something; returns the message's number."""
        if not self.alive:
            raise WorkerError(f"the drafter on {self._names()} has been stopped")
        while self.answered < self.number:  # so that nobody waits for room in a pipe that nobody reads
            self.receive(self.answered + 1)
        try:
            with interrupts_later():
                self.number += 1
                self._numbers[self.board.sent] += 1
                for mail in self.mail:
                    mail.send((operation, self.number, arguments))
        except OSError as error:
            self._fail(self._broken(error))
        return self.number

    def receive(self, number: int) -> Any:
        """Rank 0's answer to a message; earlier answers that nobody has asked for are thrown away."""
        while self.answered < number:
            value = self._receive([0], self.answered + 1, self.timeout)
        return value

    def call(self, operation: str, *arguments: Any) -> Any:
        return self.receive(self.send(operation, *arguments))

    def close(self) -> None:
        """End all processes; does nothing where they are ended."""
        self._end()

    def _receive(self, ranks: Sequence[int], number: int, patience: float) -> Any:
        """The message of that number from each of some ranks, while all processes are watched; returns the first's."""
        values: dict[int, Any] = {}
        beats, moved = self._beats(), time.monotonic()
        while len(values) < len(ranks):
            ready = wait([*self.mail, *(process.sentinel for process in self.processes)], LOOK)
            heard = [rank for rank, mail in enumerate(self.mail) if mail in ready]
            errors: list[Told | None] = []
            for rank in heard:
                try:
                    with interrupts_later():
                        kind, found, value = self.mail[rank].recv()
                        self.answered = max(self.answered, found)
                except (EOFError, OSError) as error:
                    kind, found, value = "error", 0, self._broken(error)
                if kind == "error":
                    errors.append(value)
                else:
                    assert found == number, f"answer {found} of rank {rank}, waiting for {number}"
                    values[rank] = value
            if errors:  # rather that of the rank that failed than those of the ranks that waited for it
                self._fail(min(errors, key=lambda told: told is None or told[0] == "LinkError"))
            if not heard and any(process.sentinel in ready for process in self.processes):
                self._fail(None)
            if beats != (beats := self._beats()):
                moved = time.monotonic()
            elif time.monotonic() - moved > patience:
                self._fail(self._hung(patience))
        return values[ranks[0]]

    def _beats(self) -> list[int]:
        return [self._numbers[self.board.beat_of(rank)] for rank in range(self.board.size)]

    def _hung(self, seconds: float) -> Told:
        return "TimeoutError", f"no sign of life for {seconds:g} s", self._last()

    def _broken(self, error: Exception) -> Told | None:
        return self._hung(self.timeout) if isinstance(error, BlockingIOError) else None

    def _last(self) -> int | None:
        """The rank that the others wait for, as it has given the fewest signs of life; None: all have given as many."""
        beats = self._beats()
        return None if min(beats) == max(beats) else beats.index(min(beats))

    def _fail(self, told: Told | None) -> None:
        """End everything and raise what has happened. A rank that died says nothing; those waiting for it complain."""
        dead = self._dead() if told is None or told[0] == "LinkError" else None
        self.close()
        if dead:
            raise WorkerError(f"the drafter's process on {dead[0]} died ({dead[1]})") from None
        kind, text, rank = told or ("ConnectionError", "its connection broke", None)
        rank = self._last() if kind == "LinkError" else rank  # it is another one that does not answer
        where = self._names() if rank is None else str(self.places[rank])
        if kind == ModelLoadError.__name__:
            raise ModelLoadError(text) from None
        if kind.endswith("MemoryError") or "allocate memory" in text:
            text = f"out of memory: {text}" if text else "out of memory"
        elif kind not in ("TimeoutError", "LinkError", "ConnectionError"):
            text = f"{kind}: {text}"
        raise WorkerError(f"the drafter's process on {where} failed ({text})") from None

    def _dead(self) -> tuple[DeviceSlot, str] | None:
        """The place of a process that ended, and how."""
        ready = wait([process.sentinel for process in self.processes], LOOK)
        for process in [each for each in self.processes if each.sentinel in ready]:
            process.join(LOOK)  # its exit code comes a moment later
        for place, process in zip(self.places, self.processes, strict=False):
            code = process.exitcode
            if code in {-each for each in signal.Signals}:
                return place, signal.Signals(-code).name
            if code:
                return place, f"exit code {code}"
        return None

    def _names(self) -> str:
        return ",".join(map(str, self.places))


def room_of(plan: LoadSpec, size: int) -> int:
    """Bytes of one rank's part of an exchange at most: of a chunk's hidden or inner states, or of the logits."""
    config = plan.config
    inner = -(-config.intermediate_size // size)
    numbers = max(CHUNK * max(config.hidden_size, inner), -(-config.vocab_size // size))
    return numbers * storage_dtype(plan.precision).itemsize


def _stop(processes: list[BaseProcess], mail: list[Connection], numbers: memoryview, sent: int, folder: str) -> None:
    """End the processes: kindly, by closing their mail, then by SIGTERM, then by SIGKILL."""
    with interrupts_later():
        numbers[sent] = CLOSING
        for connection in mail:
            connection.close()
        started = [process for process in processes if process.pid is not None]
        for end in (lambda process: None, BaseProcess.terminate, BaseProcess.kill):
            for process in started:
                if process.is_alive():
                    end(process)
            deadline = time.monotonic() + STOP_SECONDS
            for process in started:
                process.join(max(0.0, deadline - time.monotonic()))
        for process in started:
            with suppress(ValueError):  # not even SIGKILL ends one that the kernel holds
                process.close()
        processes.clear()
        mail.clear()
        shutil.rmtree(folder, ignore_errors=True)
