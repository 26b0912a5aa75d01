"""Pipes and signals of the main process: pipe I/O that survives Ctrl-C and a hung peer without truncating a message."""

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


def pipe_with_timeout(context: BaseContext, timeout_seconds: float) -> tuple[Connection, Connection]:
    """Return the two ends of a pipe. Reads and writes at the first end raise BlockingIOError after this many seconds
    without progress."""
    local, remote = context.Pipe()
    if os.name == "posix":
        timeval = struct.pack("ll", int(timeout_seconds), int(timeout_seconds % 1 * 1e6))
        with socket.socket(fileno=os.dup(local.fileno())) as end:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                end.setsockopt(socket.SOL_SOCKET, option, timeval)
    return local, remote


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Defer SIGINT until the block exits.

    Blocking the signal in this thread's mask would not be enough: another thread of torch would take it, and Python
    would still run the handler in the main thread.
    """
    handler, deferred = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # other threads are never interrupted; SIG_IGN/SIG_DFL handlers cannot be deferred
        return

    def defer(*arguments: Any) -> None:
        deferred.append(arguments)

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if deferred:
            handler(*deferred[0])


def start_with_sigint_blocked(process: BaseProcess) -> None:
    """Start a process that inherits a blocked SIGINT, so that Ctrl-C does not end it even while it imports."""
    with defer_sigint():
        if not hasattr(signal, "pthread_sigmask"):
            process.start()
            return
        resource_tracker.ensure_running()  # now, since it would reset the mask while the process starts
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
