"""Pipes and signals of the main process: SIGINT is deferred, and a pipe without progress raises an error."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from torch import multiprocessing

from pdevis.parallel.ipc import defer_sigint, pipe_with_timeout


def interrupt_in_block(done):
    with defer_sigint():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append(True)


@pytest.mark.parametrize("threads", [0, 1])
def test_sigint_is_deferred_even_if_another_thread_receives_it(threads):
    finished, done = threading.Event(), []
    others = [threading.Thread(target=finished.wait) for _ in range(threads)]
    for thread in others:
        thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_in_block(done)
    finally:
        finished.set()
        for thread in others:
            thread.join()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigint_is_deferred_to_the_end_of_the_outer_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_in_nested_blocks(done)
    assert done == [True, True]


def interrupt_in_nested_blocks(done):
    with defer_sigint():
        interrupt_in_block(done)
        done.append(True)


def test_ignored_sigint_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt_in_block([])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_do_not_change_the_handler():
    handlers = []

    def work():
        with defer_sigint():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_reads_and_writes_time_out():
    local, remote = pipe_with_timeout(multiprocessing.get_context("spawn"), 0.2)
    with local, remote:
        with pytest.raises(BlockingIOError):
            local.send_bytes(bytes(2**22))
        os.write(remote.fileno(), (100).to_bytes(4, "big"))  # the length of a message that does not follow
        with pytest.raises(BlockingIOError):
            local.recv()
