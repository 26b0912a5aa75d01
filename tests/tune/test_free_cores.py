"""ThreadChoice: a thread for each core that other programs leave, unless the user has chosen the number."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from pdevis.tune import free_cores
from pdevis.tune.free_cores import ThreadChoice


@pytest.fixture
def machine(monkeypatch) -> dict[str, Any]:
    """A machine of four cores whose time and use by others the test sets."""
    state: dict[str, Any] = {"time": 0.0, "others": 0.0, "threads": 4}
    for name in free_cores.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(free_cores, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(free_cores, "_seconds_of_others", lambda: state["others"])
    monkeypatch.setattr(free_cores.time, "monotonic", lambda: state["time"])
    monkeypatch.setattr(free_cores.time, "sleep", lambda seconds: state.update(time=state["time"] + seconds))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: state.update(threads=count))
    return state


@pytest.mark.parametrize(("busy", "threads"), [(0.3, 4), (0.9, 3), (2.0, 2), (3.9, 1), (7.0, 1)])
def test_threads_are_the_cores_that_others_leave(machine, busy, threads):
    choice = ThreadChoice()
    machine.update(time=10.0, others=10 * busy)
    note = choice.adapt()
    assert machine["threads"] == threads
    assert (note is None) == (threads == 4)
    if note:
        assert f"other programs use {busy:.1f} of 4 cores (OMP_NUM_THREADS sets the number)" in note
        assert note.startswith("1 thread:" if threads == 1 else f"{threads} threads:")


def test_threads_follow_the_machine(machine):
    choice = ThreadChoice()
    machine.update(time=10.0, others=10.0)
    assert choice.adapt()
    assert choice.adapt() is None, "no change, no line"
    choice.watch()
    machine["time"] += 10
    assert choice.adapt().startswith("4 threads: other programs use 0.0")


def test_a_short_observation_is_extended(machine):
    choice = ThreadChoice()
    assert choice.busy_cores() == 0
    assert machine["time"] == free_cores.MIN_SECONDS


@pytest.mark.parametrize("name", free_cores.VARIABLES)
def test_the_users_number_stays(machine, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    choice = ThreadChoice()
    machine.update(time=10.0, others=40.0)
    assert choice.adapt() is None
    assert machine["threads"] == 4


def test_another_process_is_seen():
    choice = ThreadChoice()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            choice.watch()
            assert any(choice.busy_cores() > 0.2 for _ in range(50))
        finally:
            process.kill()
