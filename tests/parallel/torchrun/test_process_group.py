"""Two processes with the variables that torchrun sets: how they meet, what rank 0 has them do, and how they end.

This file is also the program of those processes: `python test_spread_ranks.py ENDING`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from helpers.torchrun_runs import PYTHONPATH
from pdevis.parallel.torchrun.process_group import RankChannel, RankError, start_ranks, under_torchrun
from pdevis.util.errors import ModelLoadError

SECONDS = 60  # a test's limit for its processes; they take about 5
PATIENCE = 4.0
ENDED = "follower ended"

# ---- what the processes do ----


def lead(ending: str) -> None:
    """Some calls, and then rank 0 ends in one way or another."""
    ranks = start_ranks(meet_seconds=20, patience_seconds=PATIENCE)
    channel = RankChannel(ranks, patience_seconds=PATIENCE)
    done: list[Any] = []
    channel.register("add", lambda *numbers: done.append(sum(numbers)) or done[-1])
    channel.register("fail", lambda rank: 1 / (ranks.rank != rank))
    channel.register("meet", lambda: torch.distributed.all_reduce(torch.ones(1)) if ranks.rank else 1 / 0)
    if ranks.rank > 0:
        try:
            channel.follow()
        finally:
            print(ENDED, done, flush=True)
        return
    assert channel.call("add", 1, 2) == 3
    assert channel.call("add", *range(2000)) == 1999000  # longer than a frame
    if ending == "idle":
        time.sleep(1.5 * PATIENCE)
        assert channel.call("add", 4) == 4
    if ending == "close":
        channel.close()
        channel.close()
        with pytest.raises(RankError, match="closed"):
            channel.call("add", 1)
    if ending == "raise":
        raise ValueError("between calls")
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if ending in ("meet", "fail here"):
        with pytest.raises(ZeroDivisionError):
            channel.call("meet") if ending == "meet" else channel.call("fail", 0)
        with pytest.raises(RankError, match="after ZeroDivisionError in"):
            channel.call("add", 1)
    if ending == "fail here":
        sys.stdin.read()  # rank 0 goes on, as a chat does
    if ending == "fail there":
        channel.call("fail", 1)
        time.sleep(1)
        with pytest.raises(RankError, match="another rank is gone"):
            channel.call("add", 1)


def run(ending: str) -> int:
    try:
        lead(ending)
    except ModelLoadError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    return 0


# ---- the tests ----


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """start(rank, …, ending=…): processes with torchrun's variables, without torchrun, which would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[str]] = []

    def begin(*numbers: int, ending: str) -> list[subprocess.Popen[str]]:
        for rank in numbers:
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            variables = {
                **os.environ,
                **place,
                "MASTER_PORT": str(port),
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": PYTHONPATH,
            }
            command = [sys.executable, __file__, ending]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen(command, env=variables, text=True, **pipes))
        return started

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines of stderr that are ours, once the process has ended by itself."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("ending", ["close", "return", "raise", pytest.param("idle", marks=pytest.mark.slow)])
def test_followers_end_with_rank_0(start: Callable[..., Any], ending: str) -> None:
    """However rank 0 comes to its end, the other one leaves quietly; and it does not while rank 0 only thinks."""
    leader, follower = start(0, 1, ending=ending)
    assert leader.wait(SECONDS) == (1 if ending == "raise" else 0), leader.communicate()
    code, out, lines = outcome(follower)
    assert (code, lines) == (0, [])
    assert out == f"{ENDED} [3, 1999000{', 4' if ending == 'idle' else ''}]\n"


@pytest.mark.parametrize("ending", ["kill", "meet", pytest.param("freeze", marks=pytest.mark.slow)])
def test_followers_do_not_wait_for_ever(start: Callable[..., Any], ending: str) -> None:
    _, follower = start(0, 1, ending=ending)
    code, out, lines = outcome(follower)
    assert code == 2
    assert out.startswith(ENDED)
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1: meet failed" if ending == "meet" else "error: rank 1: rank 0 is gone or")


def test_a_failing_call_is_the_last_one(start: Callable[..., Any]) -> None:
    """It leaves the other rank, which ends at once, although rank 0 goes on."""
    leader, follower = start(0, 1, ending="fail here")
    assert outcome(follower)[0] == 2
    assert leader.poll() is None
    assert outcome(leader)[0] == 0  # its input has ended


def test_a_follower_that_fails_is_missed(start: Callable[..., Any]) -> None:
    leader, follower = start(0, 1, ending="fail there")
    code, _, lines = outcome(follower)
    assert (code, lines) == (2, ["error: rank 1: fail failed (division by zero)"])
    assert outcome(leader)[0] == 0, leader.communicate()


def test_a_rank_that_does_not_come(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        began = time.monotonic()
        with pytest.raises(ModelLoadError, match=f"rank {rank} of 2: cannot meet the others at 127.0.0.1:") as caught:
            start_ranks(meet_seconds=1)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 10


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**place, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        assert under_torchrun()
        with pytest.raises(ModelLoadError, match="in use") as caught:
            start_ranks(meet_seconds=2)
    assert "\n" not in str(caught.value)


def test_a_rank_without_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelLoadError, match="this machine has 1 GPUs"):
        start_ranks()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ModelLoadError, match="WORLD_SIZE = 'two'"):
        start_ranks()


def test_what_counts_as_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert not under_torchrun()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert not under_torchrun()
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert under_torchrun()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not under_torchrun()
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not under_torchrun()


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]))
