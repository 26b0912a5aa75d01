"""Workers that die, hang or fail: the error is one line that names the device, within seconds, and all workers end."""

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

from helpers import HANG_SECONDS
from helpers.processes import (
    GREEDY,
    PROMPT,
    VOCAB,
    decode,
    device_slots,
    eventually,
    is_running,
    remote_drafter,
    spec_of,
)
from pdevis.config import DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.devices import DeviceSlot
from pdevis.generation import DecodeStats
from pdevis.loading.model_builder import build_model
from pdevis.parallel.worker_pool import WorkerError, WorkerPool
from pdevis.util.validation import ModelLoadError

LANES = DraftConfig("parallel", 0.3)
ENDLESS = replace(GREEDY, gamma=6000, max_new_tokens=6000)  # a draft of many seconds
BUSY_SECONDS = 3.0  # that a worker spends before it loads


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def spec(tiny_folder):
    return spec_of(tiny_folder("llama", layers=5, seed=1, max_position_embeddings=8192))


@pytest.fixture(scope="module")
def target(tiny_folder):
    return build_model(spec_of(tiny_folder("llama", layers=5, max_position_embeddings=8192)))


@pytest.fixture(scope="module")
def running(spec):
    """running(): a drafter on two ranks; a new one only if a test has ended the last one."""
    pools = []

    def get() -> WorkerPool:
        if not pools or not pools[-1].alive:
            pools.append(WorkerPool(spec, device_slots(2), target_vocab=VOCAB))
        return pools[-1]

    yield get
    for pool in pools:
        pool.close()


def plain(target):
    return [event.id for event in autoregressive(Verifier(target), PROMPT, config=GREEDY, stats=DecodeStats())]


def pids_of(workers):
    return [process.pid for process in workers.processes]


def children():
    """The worker processes of this process."""
    processes = psutil.Process().children(recursive=True)
    return {child.pid for child in processes if is_running(child.pid) and "spawn_main" in " ".join(child.cmdline())}


@contextmanager
def fails(message, pids=(), error=WorkerError):
    """Expect a one-line error that matches the whole message, not a hang, and that the processes end."""
    begin = time.monotonic()
    with pytest.raises(error, match=rf"\A{message}\Z") as caught:
        yield
    assert time.monotonic() - begin < HANG_SECONDS
    assert "\n" not in str(caught.value)
    assert eventually(lambda: not any(map(is_running, pids)))


def run_during_draft(monkeypatch, workers, action):
    """Run an action while the next draft is being made."""

    def call(operation, *arguments):
        workers.send(operation, *arguments)
        time.sleep(0.2)
        assert not workers.connections[0].poll(), "the draft is ready already"
        action()
        return workers.receive()

    monkeypatch.setattr(workers, "call", call)


def run_when(monkeypatch, workers, when, action):
    """Run an action now, or during the next draft; return decoding settings that are affected by it."""
    if when == "drafting":
        run_during_draft(monkeypatch, workers, action)
        return ENDLESS
    action()
    return GREEDY


@pytest.mark.parametrize(("when", "rank"), [("idle", 1), ("drafting", 0), slow("idle", 0), slow("drafting", 1)])
def test_a_killed_rank_is_one_error_and_the_target_stays_usable(spec, target, running, monkeypatch, when, rank):
    workers = running()
    pids, drafter, expected = pids_of(workers), remote_drafter(workers, LANES), plain(target)
    assert decode(target, drafter, GREEDY)[0] == expected
    config = run_when(monkeypatch, workers, when, partial(os.kill, pids[rank], signal.SIGKILL))
    with fails(rf"the drafter's process on {workers.device_slots[rank]} died \(SIGKILL\)", pids):
        decode(target, drafter, config)
    with fails("the drafter on cpu:.* has been stopped"):
        decode(target, drafter, GREEDY)
    assert plain(target) == expected
    assert decode(target, remote_drafter(running(), LANES), GREEDY)[0] == expected


def test_ctrl_c_while_a_reply_is_received_loses_no_message(target, running, monkeypatch):
    workers = running()
    drafter, connection = remote_drafter(workers, LANES), workers.connections[0]

    def recv(receive=connection.recv):
        value = receive()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return value

    monkeypatch.setattr(connection, "recv", recv)
    with pytest.raises(KeyboardInterrupt):
        workers.call("forward", [1, 2])
    monkeypatch.undo()
    assert decode(target, drafter, GREEDY)[0] == plain(target)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_rank_that_runs_out_of_memory(running):
    workers = running()
    pids = pids_of(workers)
    with open(f"/proc/{pids[1]}/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + 2**26
    resource.prlimit(pids[1], resource.RLIMIT_AS, (limit, limit))
    with fails(rf"the drafter's process on {workers.device_slots[1]} failed \(out of memory: .*allocate.*\)", pids):
        workers.call("forward", [7] * 6000)
    assert not workers.alive


@pytest.mark.parametrize(("rank", "when"), [(0, "idle"), slow(1, "drafting"), slow(1, "a long prompt")])
def test_a_rank_that_hangs_is_reported_after_the_timeout_and_killed(spec, target, monkeypatch, rank, when):
    """SIGTERM does not end a stopped process, SIGKILL does. The long prompt does not fit into the pipe."""
    workers = WorkerPool(spec, device_slots(2), target_vocab=VOCAB, timeout_seconds=5.0)
    pids, drafter = pids_of(workers), remote_drafter(workers, LANES)
    assert decode(target, drafter, GREEDY)[0] == plain(target)
    config = run_when(monkeypatch, workers, when, partial(os.kill, pids[rank], signal.SIGSTOP))
    reason = rf"(no heartbeat|rank {rank} of the drafter has not answered) for 5 s"
    with fails(rf"the drafter's process on {workers.device_slots[rank]} failed \({reason}\)", pids):
        if when == "a long prompt":
            workers.call("prefill", [3] * 300_000)
        else:
            decode(target, drafter, config)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["idle", "drafting"])
def test_a_killed_rank_of_gloo_gives_the_same_error(spec, target, monkeypatch, when):
    workers = WorkerPool(spec, device_slots(2), target_vocab=VOCAB, transport="gloo")
    pids, drafter = pids_of(workers), remote_drafter(workers, LANES)
    assert decode(target, drafter, GREEDY)[0] == plain(target)
    config = run_when(monkeypatch, workers, when, partial(os.kill, pids[1], signal.SIGKILL))
    with fails(rf"the drafter's process on {workers.device_slots[1]} died \(SIGKILL\)", pids):
        decode(target, drafter, config)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [(("sing",), "KeyError: 'sing'"), slow(("forward", [10**6]), "IndexError: index out of range in self")],
)
def test_a_failing_operation_is_one_line_that_names_the_device(spec, operation, reason):
    workers = WorkerPool(spec, device_slots(1), target_vocab=VOCAB)
    with fails(rf"the drafter's process on {workers.device_slots[0]} failed \({reason}\)", pids_of(workers)):
        workers.call(*operation)
    assert not workers.alive


def test_a_model_folder_that_is_deleted_before_the_start(tiny_folder, tmp_path):
    folder, before = tmp_path / "model", children()
    shutil.copytree(tiny_folder("qwen2"), folder)
    spec = spec_of(folder)
    shutil.rmtree(folder)
    with fails(f".*{folder}.*", error=ModelLoadError):
        WorkerPool(spec, device_slots(1), target_vocab=VOCAB)
    assert children() == before


@dataclass(frozen=True)
class FaultySlot(DeviceSlot):
    """A device whose process has a problem before it loads."""

    fault: str = ""

    def activate(self) -> None:
        super().activate()
        if self.fault == "busy":
            time.sleep(BUSY_SECONDS)
        elif self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "out of memory":
            bytearray(2**60)


def faulty_slots(*faults):
    return [FaultySlot(slot.device, slot.core, fault) for slot, fault in zip(device_slots(2), faults)]


@pytest.mark.parametrize(
    ("fault", "reason"), [("out of memory", r"failed \(out of memory\)"), slow("killed", r"died \(SIGKILL\)")]
)
def test_a_rank_that_fails_to_load_is_reported_while_rank_0_is_busy(spec, fault, reason):
    slots, before = faulty_slots("busy", fault), children()
    with pytest.raises(WorkerError, match=rf"\Athe drafter's process on {slots[1]} {reason}\Z"):
        WorkerPool(spec, slots, target_vocab=VOCAB)
    assert children() == before


@pytest.mark.slow
def test_waiting_for_ranks_to_load_uses_no_cpu_time(spec):
    begin = time.process_time()
    WorkerPool(spec, faulty_slots("busy", ""), target_vocab=VOCAB).close()
    assert time.process_time() - begin < BUSY_SECONDS / 3
