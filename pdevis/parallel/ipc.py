"""The main process's end of a pipe: neither Ctrl-C nor a process that hangs makes half a message of a whole one."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any


def patient_pipe(context: BaseContext, seconds: float) -> tuple[Connection, Connection]:
    """Two ends of a pipe. At the first, reading and writing raise BlockingIOError where nothing moves for so long."""
    ours, theirs = context.Pipe()
    if os.name == "posix":
        with socket.socket(fileno=os.dup(ours.fileno())) as end:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))
    return ours, theirs


@contextmanager
def interrupts_later() -> Iterator[None]:
    """What Ctrl-C does, it does behind this block.

    Masking the signal would not be enough: one of torch's threads takes it then, and Python runs the handler in the
    main thread all the same.
    """
    handler, caught = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # other threads are never interrupted, and what is no function is not Python's to put off
        return

    def later(*told: Any) -> None:
        caught.append(told)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])


def start_deaf(process: BaseProcess) -> None:
    """Start a process that Ctrl-C at the terminal does not reach, not even while it imports: it inherits the mask."""
    with interrupts_later():
        if not hasattr(signal, "pthread_sigmask"):
            process.start()
            return
        resource_tracker.ensure_running()  # now, as that lifts the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
