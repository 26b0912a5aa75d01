"""Workers leave no process, file or shared memory, however they or the main process end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
import torch

from helpers import HANG_SECONDS, ROOT
from helpers.processes import PROMPT, VOCAB, device_slots, eventually, is_running, open_file_count, spec_of
from helpers.tiny_models import make_tokenizer
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.devices import available_cores
from pdevis.loading.model_builder import build_model
from pdevis.pair import SpeculativePair, load_pair
from pdevis.parallel.worker_pool import WorkerError, WorkerPool

APP = ROOT / "appInference.py"
SHORT = DecodeConfig(max_new_tokens=20, eos_ids=())

MAIN = """
import sys, time
from pathlib import Path
from pdevis.parallel.worker_pool import WorkerPool
from pdevis.config import DecodeConfig
from helpers.processes import PROMPT, VOCAB, device_slots, spec_of

def print_pids(workers, *_, **__):
    print(*(process.pid for process in workers.processes), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    stage = sys.argv[2]
    if stage == "loading":
        WorkerPool._collect_replies = print_pids
    workers = WorkerPool(spec_of(Path(sys.argv[1])), device_slots(2), target_vocab=VOCAB, min_ahead_probability=0.0)
    workers.send("open", PROMPT, DecodeConfig(6000, eos_ids=(), overlap=True))
    if stage == "drafting":
        workers.send("draft", [], 6000, None, 0)
    if stage == "drafting ahead":
        workers.call("draft", [], 1500, None, 6000)
    print_pids(workers)
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder("llama", layers=5, max_position_embeddings=8192)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def shared_memory():
    return set(os.listdir("/dev/shm"))


def running_members(group):
    """The running processes of a process group."""
    pids = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == group and is_running(pid):
                pids.append(pid)
        except ProcessLookupError:
            pass
    return pids


@pytest.mark.parametrize("stage", ["drafting ahead", slow("drafting"), slow("idle"), slow("loading")])
def test_workers_end_if_the_main_process_is_killed(folder, temporary, stage):
    script, before = temporary / "main.py", shared_memory()
    script.write_text(MAIN)
    command = [sys.executable, str(script), str(folder), stage]
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    main = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    try:
        pids = [int(word) for word in main.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.2)
        assert all(map(is_running, pids))
    finally:
        main.kill()
        main.wait()
        main.stdout.close()
    assert eventually(lambda: not any(map(is_running, pids)))
    assert not list(temporary.glob("pdevis-*"))
    assert eventually(lambda: shared_memory() <= before)


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("mode parallel", 0.3),
        slow("loading the target", 0.0),
        *(slow("starting the drafter", seconds) for seconds in (0.0, 1.0, 3.0)),
    ],
)
def test_ctrl_c_in_the_terminal_ends_everything(folder, temporary, line, seconds):
    """The terminal sends SIGINT to all processes of the group: in mid-answer, and while the models load."""
    before, devices = shared_memory(), ",".join(f"cpu:{core}" for core in available_cores()[:2])
    words = ["--prompt", "hello", "--draft_device", devices, "--overlap", "--no-chat", "--length", "6000"]
    main = subprocess.Popen(
        [sys.executable, str(APP), "--target_model", str(folder), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert any(line in written for written in iter(main.stderr.readline, ""))
        if line.startswith("mode"):
            assert main.stdout.read(1), "the answer has begun"
        time.sleep(seconds)
        os.killpg(main.pid, signal.SIGINT)
        _, errors = main.communicate(timeout=HANG_SECONDS)
    finally:
        main.kill()
        main.communicate()
    assert main.returncode == 130
    assert "Traceback" not in errors
    assert eventually(lambda: not running_members(main.pid))
    assert not list(temporary.glob("pdevis-*"))
    assert eventually(lambda: shared_memory() <= before)


def test_a_pair_without_references_ends_its_workers(folder, temporary):
    """The pair is garbage-collected in the middle of a generation."""
    spec, before = spec_of(folder), shared_memory()
    pair = SpeculativePair(
        build_model(spec),
        WorkerPool(spec, device_slots(1), target_vocab=VOCAB, min_ahead_probability=0.0),
        make_tokenizer(),
    )
    pids = [process.pid for process in pair.workers.processes]
    stream = pair.stream(PROMPT, DecodeConfig(max_new_tokens=200, eos_ids=(), overlap=True))
    assert next(stream).id >= 0
    assert list(temporary.glob("pdevis-*"))
    del pair, stream
    gc.collect()
    assert eventually(lambda: not any(map(is_running, pids)))
    assert not list(temporary.glob("pdevis-*"))
    assert eventually(lambda: shared_memory() <= before)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["shared", "gloo"])
def test_starting_and_stopping_leaves_nothing(folder, temporary, transport):
    spec = spec_of(folder)
    WorkerPool(
        spec, device_slots(1), target_vocab=VOCAB
    ).close()  # the first start creates resources that multiprocessing keeps
    gc.collect()
    shared, files, threads = shared_memory(), open_file_count(), psutil.Process().num_threads()
    for _ in range(5):
        workers = WorkerPool(spec, device_slots(2), target_vocab=VOCAB, transport=transport)
        pids = [process.pid for process in workers.processes]
        assert len(workers.call("forward", PROMPT)) == len(PROMPT)
        workers.close()
        workers.close()
        assert not any(map(is_running, pids))
        assert not list(temporary.glob("pdevis-*"))
        with pytest.raises(WorkerError, match="has been stopped"):
            workers.call("forward", PROMPT)
    del workers  # frees the shared memory
    gc.collect()
    assert eventually(lambda: shared_memory() <= shared)
    assert open_file_count() <= files
    assert psutil.Process().num_threads() <= threads


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("end", ["killed", slow("closed")])
def test_a_pair_recovers_in_this_process(folder, end):
    all_cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    draft = DraftConfig("parallel", 0.3)
    pair = load_pair(str(folder), overlap=True, target_precision="float32", draft_precision="float32", draft=draft)
    assert len(os.sched_getaffinity(0)) == len(all_cores) - 1
    expected = pair.generate(PROMPT, SHORT, "target").ids
    assert pair.generate(PROMPT, SHORT).ids == expected
    pids = [process.pid for process in pair.workers.processes]
    if end == "killed":
        os.kill(pids[0], signal.SIGKILL)
        message = r"\Athe drafter's process on cpu:\d+ died \(SIGKILL\)\Z"
    else:
        pair.close()
        pair.close()
        message = r"\Athe drafter on cpu:\d+ has been stopped\Z"
    with pytest.raises(WorkerError, match=message):
        pair.generate(PROMPT, SHORT)
    assert pair.generate(PROMPT, SHORT, "target").ids == expected
    pair.recover()
    assert os.sched_getaffinity(0) == all_cores
    assert torch.get_num_threads() == threads
    recovered = pair.generate(PROMPT, SHORT)
    assert recovered.ids == expected
    assert recovered.stats.drafted > 0
    assert pair.generate(PROMPT, SHORT, "drafter").ids == expected
    assert pair.describe()["draft_device"] == "cpu"
    pair.close()
    pair.close()
    assert os.sched_getaffinity(0) == all_cores
    assert eventually(lambda: not any(map(is_running, pids)))
