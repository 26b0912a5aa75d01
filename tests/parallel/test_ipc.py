"""The main process's end of a pipe: Ctrl-C waits for the end of a message, and half a message is an error."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from torch import multiprocessing

from pdevis.parallel.ipc import interrupts_later, patient_pipe


def interrupted_inside(done):
    with interrupts_later():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append(True)


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_waits_also_where_another_thread_takes_it(threads):
    over, done = threading.Event(), []
    others = [threading.Thread(target=over.wait) for _ in range(threads)]
    for thread in others:
        thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_inside(done)
    finally:
        over.set()
        for thread in others:
            thread.join()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_waits_for_the_outer_block_of_two():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_in_two(done)
    assert done == [True, True]


def interrupted_in_two(done):
    with interrupts_later():
        interrupted_inside(done)
        done.append(True)


def test_ctrl_c_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupted_inside([])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_ctrl_c_alone():
    found = []

    def work():
        with interrupts_later():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_a_pipe_that_nobody_empties_or_fills_ends_in_an_error():
    ours, theirs = patient_pipe(multiprocessing.get_context("spawn"), 0.2)
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            ours.send_bytes(bytes(2**22))
        os.write(theirs.fileno(), (100).to_bytes(4, "big"))  # the length of a message that does not follow
        with pytest.raises(BlockingIOError):
            ours.recv()
