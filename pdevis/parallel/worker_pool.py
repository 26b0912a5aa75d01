"""WorkerPool: starts, watches and stops the worker processes of one drafter, and sends requests to them.

There is one process per device; rank 0 replies. If one of them dies, fails or stops sending heartbeats, all are ended,
and the caller gets one `WorkerError`.
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
from pdevis.loading.weights.families import unsupported_reason
from pdevis.models.causal_lm import CHUNK
from pdevis.models.linear import storage_dtype
from pdevis.parallel.collectives import CommunicationError
from pdevis.parallel.draft_service import MIN_AHEAD_PROBABILITY
from pdevis.parallel.ipc import defer_sigint, pipe_with_timeout, start_with_sigint_blocked
from pdevis.parallel.shared_memory import Heartbeat, MessageCounter, SharedBuffer
from pdevis.parallel.worker_process import (
    SHARED_MEMORY,
    Reply,
    Request,
    WorkerFailure,
    WorkerInfo,
    WorkerSpec,
    run_worker,
)
from pdevis.util.validation import ModelLoadError

LOAD_TIMEOUT_SECONDS = 1800.0  # without a heartbeat while the weights load
HEARTBEAT_TIMEOUT_SECONDS = 30.0  # without a heartbeat if one is sent at every sublayer
FORWARD_TIMEOUT_SECONDS = 300.0  # without a heartbeat if one is sent at every forward, or forwards are compiled
POLL_SECONDS = 0.5  # heartbeat poll interval
STOP_SECONDS = 1.0  # for a process to exit before a stronger signal is sent


class WorkerError(ConnectionError):
    """The drafter's worker processes have ended; the message says why."""


class WorkerPool:
    """The worker processes of one drafter; a `DrafterBackend` (remote.py).

    Args:
        load_spec: the drafter to load.
        device_slots: one per process; the first one is rank 0's.
        target_vocab: ids from here on are never proposed.
        transport: "shared", "gloo" or "nccl"; None: shared memory between CPU cores, nccl between GPUs.
        static_shapes: run whole forwards in static shapes, as graphs on CUDA.
        timeout_seconds: time without a heartbeat after which a process counts as hung; None: depends on the drafter.
        min_ahead_probability: as for `DraftService`.

    Raises:
        ModelLoadError: the drafter cannot be loaded on these devices. WorkerError: a process fails while it starts.
    """

    concurrent = True

    def __init__(
        self,
        load_spec: LoadSpec,
        device_slots: Sequence[DeviceSlot],
        *,
        target_vocab: int,
        transport: str | None = None,
        static_shapes: bool = False,
        timeout_seconds: float | None = None,
        min_ahead_probability: float = MIN_AHEAD_PROBABILITY,
    ) -> None:
        self.load_spec, self.target_vocab, self.static_shapes = load_spec, target_vocab, static_shapes
        self.device_slots = list(device_slots)
        self.devices = len(device_slots)
        self.has_sublayer_access = not unsupported_reason(load_spec.config)
        frequent_heartbeats = self.has_sublayer_access and not static_shapes
        default_seconds = HEARTBEAT_TIMEOUT_SECONDS if frequent_heartbeats else FORWARD_TIMEOUT_SECONDS
        self.timeout_seconds = timeout_seconds or default_seconds
        transport = transport or ("nccl" if device_slots[0].device.type == "cuda" else SHARED_MEMORY)
        self.splits_mlps = transport == SHARED_MEMORY and self.devices > 1
        buffer = SharedBuffer(self.devices, max_exchange_bytes(load_spec, self.devices) if self.splits_mlps else 0)
        self._heartbeats = [Heartbeat(buffer, rank) for rank in range(self.devices)]
        self._messages = MessageCounter(buffer)
        self._sent = self._answered = 0  # numbers of the last request and of the last reply
        folder = tempfile.mkdtemp(prefix="pdevis-")
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self._finalizer = weakref.finalize(self, _stop, self.processes, self.connections, self._messages, folder)
        try:
            for rank, device_slot in enumerate(device_slots):
                self._start_worker(
                    WorkerSpec(
                        rank=rank,
                        device_slot=device_slot,
                        load_spec=load_spec,
                        target_vocab=target_vocab,
                        buffer=buffer,
                        transport=transport,
                        rendezvous_file=str(Path(folder) / "ranks"),
                        timeout_seconds=self.timeout_seconds,
                        static_shapes=static_shapes,
                        min_ahead_probability=min_ahead_probability,
                    )
                )
            self.info: WorkerInfo = self._collect_replies(
                range(self.devices), number=0, timeout_seconds=LOAD_TIMEOUT_SECONDS
            )
        except BaseException:
            self.close()
            raise

    def respawn_on(self, device_slots: Sequence[DeviceSlot]) -> WorkerPool:
        """Start a copy of this drafter on other devices."""
        check_lanes(",".join(map(str, device_slots)), device_slots, self.load_spec.config)
        load_spec = replace(self.load_spec, device=device_slots[0].device)
        return WorkerPool(load_spec, device_slots, target_vocab=self.target_vocab, static_shapes=self.static_shapes)

    @property
    def alive(self) -> bool:
        return self._finalizer.alive

    def send(self, operation: str, *arguments: Any) -> None:
        """Request an operation of all ranks without waiting for it."""
        if not self.alive:
            raise WorkerError(f"the drafter on {self._device_names()} has been stopped")
        self.receive()  # drain pending replies; otherwise both ends can block on a full pipe
        try:
            with defer_sigint():
                self._sent += 1
                self._messages.count_sent()
                for connection in self.connections:
                    connection.send(Request(self._sent, operation, arguments))
        except OSError as error:
            self._fail(self._connection_failure(error))

    def receive(self) -> Any:
        """Wait for all requests sent, and return the result of the last one."""
        value = None
        while self._answered < self._sent:
            value = self._collect_replies([0], number=self._answered + 1, timeout_seconds=self.timeout_seconds)
        return value

    def call(self, operation: str, *arguments: Any) -> Any:
        self.send(operation, *arguments)
        return self.receive()

    def close(self) -> None:
        """End all processes; does nothing if they have ended."""
        self._finalizer()

    def _start_worker(self, spec: WorkerSpec) -> None:
        context = multiprocessing.get_context("spawn")
        local, remote = pipe_with_timeout(context, self.timeout_seconds)
        self.connections.append(local)
        name = f"pdevis-{spec.device_slot}"
        process = context.Process(target=run_worker, args=(spec, remote), daemon=True, name=name)
        self.processes.append(process)
        start_with_sigint_blocked(process)
        remote.close()

    def _collect_replies(self, ranks: Sequence[int], *, number: int, timeout_seconds: float) -> Any:
        """Wait for the reply of that number from each of `ranks` while watching all processes; return the first
        rank's value."""
        values: dict[int, Any] = {}
        counts, last_change = self._heartbeat_counts(), time.monotonic()
        while len(values) < len(ranks):
            ready = wait([*self.connections, *(process.sentinel for process in self.processes)], POLL_SECONDS)
            readable = [rank for rank, connection in enumerate(self.connections) if connection in ready]
            failures: list[WorkerFailure | None] = []
            for rank in readable:
                try:
                    with defer_sigint():
                        reply: Reply = self.connections[rank].recv()
                        self._answered = max(self._answered, reply.number)
                except (EOFError, OSError) as error:
                    failures.append(self._connection_failure(error))
                    continue
                if isinstance(reply.value, WorkerFailure):
                    failures.append(reply.value)
                else:
                    assert reply.number == number, f"reply {reply.number} of rank {rank}, expected {number}"
                    values[rank] = reply.value
            if failures:  # report the failing rank's error, not its peers' timeouts
                self._fail(min(failures, key=_is_communication_failure))
            if not readable and any(process.sentinel in ready for process in self.processes):
                self._fail(None)
            if counts != (counts := self._heartbeat_counts()):
                last_change = time.monotonic()
            elif time.monotonic() - last_change > timeout_seconds:
                self._fail(self._timeout_failure(timeout_seconds))
        return values[ranks[0]]

    def _heartbeat_counts(self) -> list[int]:
        return [heartbeat.count for heartbeat in self._heartbeats]

    def _slowest_rank(self) -> int | None:
        """The rank that the others wait for, which has sent the fewest heartbeats; None if all have sent as many."""
        counts = self._heartbeat_counts()
        return None if min(counts) == max(counts) else counts.index(min(counts))

    def _timeout_failure(self, seconds: float) -> WorkerFailure:
        return WorkerFailure("TimeoutError", f"no heartbeat for {seconds:g} s", self._slowest_rank())

    def _connection_failure(self, error: Exception) -> WorkerFailure | None:
        """Return the failure of a worker that a pipe error indicates; None if it only means that the pipe is broken."""
        return self._timeout_failure(self.timeout_seconds) if isinstance(error, BlockingIOError) else None

    def _fail(self, failure: WorkerFailure | None) -> None:
        """End all processes and raise what has happened. A rank that died reports nothing; its peers may report that
        it does not answer."""
        no_answer = _is_communication_failure(failure)
        dead = self._find_dead() if no_answer else None
        self.close()
        if dead:
            raise WorkerError(f"the drafter's process on {dead[0]} died ({dead[1]})") from None
        failure = failure or WorkerFailure("ConnectionError", "its connection broke")
        if failure.error == ModelLoadError.__name__:
            raise ModelLoadError(failure.message) from None
        rank = self._slowest_rank() if failure.error == CommunicationError.__name__ else failure.rank
        devices = self._device_names() if rank is None else str(self.device_slots[rank])
        raise WorkerError(f"the drafter's process on {devices} failed ({_describe(failure)})") from None

    def _find_dead(self) -> tuple[DeviceSlot, str] | None:
        """The device of a process that has died, and its signal or exit code."""
        ready = wait([process.sentinel for process in self.processes], POLL_SECONDS)
        for process in [process for process in self.processes if process.sentinel in ready]:
            process.join(POLL_SECONDS)  # the exit code is available a moment later
        for device_slot, process in zip(self.device_slots, self.processes):
            code = process.exitcode
            if code in {-number for number in signal.Signals}:
                return device_slot, signal.Signals(-code).name
            if code:
                return device_slot, f"exit code {code}"
        return None

    def _device_names(self) -> str:
        return ",".join(map(str, self.device_slots))


def max_exchange_bytes(load_spec: LoadSpec, size: int) -> int:
    """Bytes that one of `size` ranks contributes to an exchange at most: its part of a chunk's hidden states or inner
    MLP states, or of the logits."""
    config = load_spec.config
    inner_size = -(-config.intermediate_size // size)
    numbers = max(CHUNK * max(config.hidden_size, inner_size), -(-config.vocab_size // size))
    return numbers * storage_dtype(load_spec.precision).itemsize


def _is_communication_failure(failure: WorkerFailure | None) -> bool:
    """True if a failure was reported because another rank failed: a broken pipe, or a rank that does not answer."""
    return failure is None or failure.error == CommunicationError.__name__


def _describe(failure: WorkerFailure) -> str:
    if failure.error.endswith("MemoryError") or "allocate memory" in failure.message:
        return f"out of memory: {failure.message}" if failure.message else "out of memory"
    if failure.error in ("TimeoutError", CommunicationError.__name__, "ConnectionError"):
        return failure.message
    return f"{failure.error}: {failure.message}"


def _stop(processes: list[BaseProcess], connections: list[Connection], messages: MessageCounter, folder: str) -> None:
    """End the processes: by closing their connections, then by SIGTERM, then by SIGKILL."""
    with defer_sigint():
        messages.close()
        for connection in connections:
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
            with suppress(ValueError):  # even SIGKILL cannot end a process in an uninterruptible system call
                process.close()
        processes.clear()
        connections.clear()
        shutil.rmtree(folder, ignore_errors=True)
