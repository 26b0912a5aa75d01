"""A drafter's own processes that die, hang or fail: one line that names the place, in seconds, and nobody is left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import psutil
import pytest

from helpers.workers import GREEDY, PROMPT, VOCAB, decode, eventually, places, plan_of, remote, runs
from pdevis.config import DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.devices import DeviceSlot
from pdevis.generation import DecodeStats
from pdevis.loading.build import build_model
from pdevis.loading.catalog import ModelLoadError
from pdevis.parallel.worker_pool import WorkerError, WorkerPool

LANES = DraftConfig("parallel", 0.3)
ENDLESS = replace(GREEDY, gamma=6000, max_new_tokens=6000)  # a draft of many seconds
FEW_SECONDS = 12.0
BUSY_SECONDS = 3.0


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def plan(tiny_folder):
    return plan_of(tiny_folder("llama", layers=5, seed=1, max_position_embeddings=8192))


@pytest.fixture(scope="module")
def target(tiny_folder):
    return build_model(plan_of(tiny_folder("llama", layers=5, max_position_embeddings=8192)))


@pytest.fixture(scope="module")
def running(plan):
    """running(): a drafter on two ranks; a new one only where a test has ended the last."""
    made = []

    def get() -> WorkerPool:
        if not made or not made[-1].alive:
            made.append(WorkerPool(plan, places(2), VOCAB))
        return made[-1]

    yield get
    for each in made:
        each.close()


def plain(target):
    return [event.id for event in autoregressive(Verifier(target), PROMPT, config=GREEDY, stats=DecodeStats())]


def pids_of(workers):
    return [process.pid for process in workers.processes]


def children():
    """The drafters' processes of this one."""
    there = psutil.Process().children(recursive=True)
    return {child.pid for child in there if runs(child.pid) and "spawn_main" in " ".join(child.cmdline())}


@contextmanager
def told(message, pids=(), error=WorkerError):
    """One line that matches from beginning to end, within seconds, and the processes are gone."""
    begin = time.monotonic()
    with pytest.raises(error, match=rf"\A{message}\Z") as caught:
        yield
    assert time.monotonic() - begin < FEW_SECONDS
    assert "\n" not in str(caught.value)
    assert eventually(lambda: not any(map(runs, pids)), 1.0)


def in_mid_draft(monkeypatch, workers, happens):
    """Something happens while the next draft is being made."""

    def call(operation, *arguments):
        number = workers.send(operation, *arguments)
        time.sleep(0.2)
        assert not workers.mail[0].poll(), "the draft is ready already"
        happens()
        return workers.receive(number)

    monkeypatch.setattr(workers, "call", call)


def strike(monkeypatch, workers, when, happens):
    """Something happens now, or in mid-draft; returns the settings of a decoding that meets it."""
    if when == "drafting":
        in_mid_draft(monkeypatch, workers, happens)
        return ENDLESS
    happens()
    return GREEDY


@pytest.mark.parametrize(("when", "rank"), [("idle", 1), ("drafting", 0), slow("idle", 0), slow("drafting", 1)])
def test_a_killed_rank_is_one_error_and_the_target_stays_usable(plan, target, running, monkeypatch, when, rank):
    workers = running()
    pids, drafter, wanted = pids_of(workers), remote(workers, LANES), plain(target)
    assert decode(target, drafter, GREEDY)[0] == wanted
    config = strike(monkeypatch, workers, when, partial(os.kill, pids[rank], signal.SIGKILL))
    with told(rf"the drafter's process on {workers.places[rank]} died \(SIGKILL\)", pids):
        decode(target, drafter, config)
    begin = time.monotonic()
    with told("the drafter on cpu:.* has been stopped"):
        decode(target, drafter, GREEDY)
    assert time.monotonic() - begin < 2
    assert plain(target) == wanted
    assert decode(target, remote(running(), LANES), GREEDY)[0] == wanted


def test_ctrl_c_while_an_answer_comes_in_loses_no_step(target, running, monkeypatch):
    workers = running()
    drafter, mail = remote(workers, LANES), workers.mail[0]

    def recv(receive=mail.recv):
        value = receive()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return value

    monkeypatch.setattr(mail, "recv", recv)
    with pytest.raises(KeyboardInterrupt):
        workers.call("forward", [1, 2])
    monkeypatch.undo()
    assert decode(target, drafter, GREEDY)[0] == plain(target)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_rank_without_memory_says_so(running):
    workers = running()
    pids = pids_of(workers)
    with open(f"/proc/{pids[1]}/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + 2**26
    resource.prlimit(pids[1], resource.RLIMIT_AS, (limit, limit))
    with told(rf"the drafter's process on {workers.places[1]} failed \(out of memory: .*allocate.*\)", pids):
        workers.call("forward", [7] * 6000)
    assert not workers.alive


@pytest.mark.parametrize(("rank", "when"), [(0, "idle"), slow(1, "drafting"), slow(1, "a long prompt")])
def test_a_rank_that_hangs_is_told_after_the_time_out_and_ended(plan, target, monkeypatch, rank, when):
    """SIGTERM does not reach a stopped process, SIGKILL does. The long prompt has no room in its pipe."""
    workers = WorkerPool(plan, places(2), VOCAB, timeout=1.0)
    pids, drafter = pids_of(workers), remote(workers, LANES)
    assert decode(target, drafter, GREEDY)[0] == plain(target)
    config = strike(monkeypatch, workers, when, partial(os.kill, pids[rank], signal.SIGSTOP))
    silent = rf"(no sign of life|rank {rank} of the drafter has not answered) for 1 s"
    with told(rf"the drafter's process on {workers.places[rank]} failed \({silent}\)", pids):
        if when == "a long prompt":
            workers.call("prefill", [3] * 300_000)
        else:
            decode(target, drafter, config)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["idle", "drafting"])
def test_a_killed_rank_of_gloo_gives_the_same_error(plan, target, monkeypatch, when):
    workers = WorkerPool(plan, places(2), VOCAB, transport="gloo")
    pids, drafter = pids_of(workers), remote(workers, LANES)
    assert decode(target, drafter, GREEDY)[0] == plain(target)
    config = strike(monkeypatch, workers, when, partial(os.kill, pids[1], signal.SIGKILL))
    with told(rf"the drafter's process on {workers.places[1]} died \(SIGKILL\)", pids):
        decode(target, drafter, config)


@pytest.mark.parametrize(
    ("operation", "said"),
    [(("sing",), "KeyError: 'sing'"), slow(("forward", [10**6]), "IndexError: index out of range in self")],
)
def test_an_operation_that_fails_is_one_line_that_says_where(plan, operation, said):
    workers = WorkerPool(plan, places(1), VOCAB)
    with told(rf"the drafter's process on {workers.places[0]} failed \({said}\)", pids_of(workers)):
        workers.call(*operation)
    assert not workers.alive


def test_a_drafter_that_vanishes_before_the_start(tiny_folder, tmp_path):
    folder, before = tmp_path / "model", children()
    shutil.copytree(tiny_folder("qwen2"), folder)
    plan = plan_of(folder)
    shutil.rmtree(folder)
    with told(f".*{folder}.*", error=ModelLoadError):
        WorkerPool(plan, places(1), VOCAB)
    assert children() == before


@dataclass(frozen=True)
class Troubled(DeviceSlot):
    """Where a process has something to go through before it loads."""

    trouble: str = ""

    def rewind_to_confirmed(self) -> None:
        super().rewind_to_confirmed()
        if self.trouble == "busy":
            time.sleep(BUSY_SECONDS)
        elif self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.trouble == "out of memory":
            bytearray(2**60)


def troubled(*troubles):
    return [Troubled(place.device, place.core, trouble) for place, trouble in zip(places(2), troubles)]


@pytest.mark.parametrize(
    ("trouble", "said"), [("out of memory", r"failed \(out of memory\)"), slow("killed", r"died \(SIGKILL\)")]
)
def test_a_rank_that_fails_to_load_is_told_while_the_first_is_busy(plan, trouble, said):
    there, before = troubled("busy", trouble), children()
    with pytest.raises(WorkerError, match=rf"\Athe drafter's process on {there[1]} {said}\Z"):
        WorkerPool(plan, there, VOCAB)
    assert children() == before


@pytest.mark.slow
def test_waiting_for_ranks_to_load_costs_no_core(plan):
    begin = time.process_time()
    WorkerPool(plan, troubled("busy", ""), VOCAB).close()
    assert time.process_time() - begin < BUSY_SECONDS / 3
