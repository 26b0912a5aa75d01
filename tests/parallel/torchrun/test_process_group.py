"""Two processes with the variables that torchrun sets: how they connect, run what rank 0 calls, and end.

This file is also the program of those processes: `python test_process_group.py ENDING`.
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

from helpers import HANG_SECONDS
from helpers.processes import PYTHONPATH
from pdevis.parallel.torchrun.process_group import RankChannel, RankError, start_ranks, under_torchrun
from pdevis.util.validation import ModelLoadError

TIMEOUT_SECONDS = 4.0
ENDED = "follower ended"

# ---- what the processes do ----


def lead(ending: str) -> None:
    """Make some calls, and then end rank 0 in one of several ways."""
    ranks = start_ranks(rendezvous_seconds=HANG_SECONDS, timeout_seconds=TIMEOUT_SECONDS)
    channel = RankChannel(ranks, timeout_seconds=TIMEOUT_SECONDS)
    sums: list[Any] = []
    channel.register("add", lambda *numbers: sums.append(sum(numbers)) or sums[-1])
    channel.register("fail", lambda rank: 1 / (ranks.rank != rank))
    channel.register("collective", lambda: torch.distributed.all_reduce(torch.ones(1)) if ranks.rank else 1 / 0)
    if ranks.rank > 0:
        try:
            channel.follow()
        finally:
            print(ENDED, sums, flush=True)
        return
    assert channel.call("add", 1, 2) == 3
    assert channel.call("add", *range(2000)) == 1999000  # longer than a frame
    if ending == "idle":
        time.sleep(1.5 * TIMEOUT_SECONDS)
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
    if ending in ("collective", "fail on 0"):
        with pytest.raises(ZeroDivisionError):
            channel.call("collective") if ending == "collective" else channel.call("fail", 0)
        with pytest.raises(RankError, match="after ZeroDivisionError in"):
            channel.call("add", 1)
    if ending == "fail on 0":
        sys.stdin.read()  # rank 0 keeps running, as a chat does
    if ending == "fail on 1":
        channel.call("fail", 1)
        time.sleep(1)
        with pytest.raises(RankError, match="another rank is gone"):
            channel.call("add", 1)


def run(ending: str) -> int:
    try:
        lead(ending)
    except ModelLoadError as error:
        print(f"error: {error}", file=sys.stderr)
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
            launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            variables = {
                **os.environ,
                **launch,
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
    """Exit code, stdout, and the error lines of stderr, after the process has ended by itself."""
    out, err = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("ending", ["close", "return", "raise", pytest.param("idle", marks=pytest.mark.slow)])
def test_followers_end_with_rank_0(start: Callable[..., Any], ending: str) -> None:
    """However rank 0 ends, the other rank ends without an error; and it does not end while rank 0 is only idle."""
    leader, follower = start(0, 1, ending=ending)
    assert leader.wait(HANG_SECONDS) == (1 if ending == "raise" else 0), leader.communicate()
    code, out, lines = outcome(follower)
    assert (code, lines) == (0, [])
    assert out == f"{ENDED} [3, 1999000{', 4' if ending == 'idle' else ''}]\n"


@pytest.mark.parametrize("ending", ["kill", "collective", pytest.param("freeze", marks=pytest.mark.slow)])
def test_followers_do_not_wait_for_ever(start: Callable[..., Any], ending: str) -> None:
    _, follower = start(0, 1, ending=ending)
    code, out, lines = outcome(follower)
    assert code == 2
    assert out.startswith(ENDED)
    assert len(lines) == 1
    assert lines[0].startswith(
        "error: rank 1: collective failed" if ending == "collective" else "error: rank 1: rank 0 is gone or"
    )


def test_a_failing_call_is_the_last_one(start: Callable[..., Any]) -> None:
    """It disconnects the other rank, which ends at once, although rank 0 keeps running."""
    leader, follower = start(0, 1, ending="fail on 0")
    assert outcome(follower)[0] == 2
    assert leader.poll() is None
    assert outcome(leader)[0] == 0  # its input has ended


def test_a_follower_that_fails_is_noticed(start: Callable[..., Any]) -> None:
    leader, follower = start(0, 1, ending="fail on 1")
    code, _, lines = outcome(follower)
    assert (code, lines) == (2, ["error: rank 1: fail failed (division by zero)"])
    assert outcome(leader)[0] == 0, leader.communicate()


def test_a_rank_that_does_not_connect(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        begin = time.monotonic()
        with pytest.raises(
            ModelLoadError, match=f"rank {rank} of 2: cannot connect to the others at 127.0.0.1:"
        ) as caught:
            start_ranks(rendezvous_seconds=1)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - begin < HANG_SECONDS


def test_a_port_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**launch, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        assert under_torchrun()
        with pytest.raises(ModelLoadError, match="in use") as caught:
            start_ranks(rendezvous_seconds=2)
    assert "\n" not in str(caught.value)


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelLoadError, match="this machine has 1 GPUs"):
        start_ranks()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ModelLoadError, match="WORLD_SIZE = 'two'"):
        start_ranks()


def test_torchrun_is_detected_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
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
