"""A drafter's own processes that die, hang or fail, and what is left behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_helpers import GREEDY, PROMPT, VOCAB, decode, eventually, open_files, places, plan_of, remote, runs

from pdevis.drafting.workers import WorkerError, Workers
from pdevis.models.build import build_model
from pdevis.pair import load_pair
from pdevis.records import DecodeConfig, DraftConfig

LANES = DraftConfig("parallel", 0.3)
FEW_SECONDS = 8.0


@pytest.fixture(scope="module")
def plan(tiny_folder):
    return plan_of(tiny_folder("llama", layers=5))


@pytest.fixture(scope="module")
def target(plan):
    return build_model(plan)


def test_a_killed_rank_is_one_error_and_the_target_stays_usable(plan, target):
    workers = Workers(plan, places(2), VOCAB)
    pids = [process.pid for process in workers.processes]
    drafter = remote(workers, LANES)
    wanted, _ = decode(target, drafter, GREEDY)
    os.kill(pids[1], signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"the drafter's process on cpu:\d+ died \(SIGKILL\)") as caught:
        decode(target, drafter, GREEDY)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < FEW_SECONDS
    assert eventually(lambda: not any(map(runs, pids)))
    with pytest.raises(WorkerError, match="has been stopped"):
        decode(target, drafter, GREEDY)
    fresh = Workers(plan, places(1), VOCAB)
    try:
        assert decode(target, remote(fresh, LANES), GREEDY)[0] == wanted
    finally:
        fresh.close()


def test_a_rank_that_hangs_is_told_after_the_time_out_and_ended(plan, target):
    workers = Workers(plan, places(2), VOCAB, timeout=1.0)
    pids = [process.pid for process in workers.processes]
    drafter = remote(workers, LANES)
    os.kill(pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"no sign of life for 1 s|has not answered for 1 s"):
        decode(target, drafter, GREEDY)
    assert time.monotonic() - begin < FEW_SECONDS
    assert eventually(lambda: not any(map(runs, pids)))


def test_an_operation_that_fails_is_one_line_that_says_where(plan):
    workers = Workers(plan, places(1), VOCAB)
    with pytest.raises(WorkerError, match=r"the drafter's process on cpu:\d+ failed \(IndexError"):
        workers.call("forward", [10**6])
    assert not workers.alive


def test_a_drafter_that_is_gone_is_said_while_starting(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("qwen2"), folder)
    plan = plan_of(folder)
    shutil.rmtree(folder)
    with pytest.raises((ValueError, WorkerError)) as caught:
        Workers(plan, places(1), VOCAB)
    assert "\n" not in str(caught.value)


def test_starting_and_stopping_leaves_nothing(plan):
    Workers(plan, places(1), VOCAB).close()  # the first one starts what multiprocessing keeps
    shared, files = set(os.listdir("/dev/shm")), open_files()
    for _ in range(3):
        workers = Workers(plan, places(2), VOCAB)
        pids = [process.pid for process in workers.processes]
        workers.close()
        workers.close()
        assert not any(map(runs, pids))
        del workers  # and with it the memory that they shared
    assert set(os.listdir("/dev/shm")) == shared
    assert open_files() <= files + 1


def test_workers_end_with_a_main_process_that_is_killed(tiny_folder, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import time\n"
        "from pdevis import load_pair\n"
        "if __name__ == '__main__':\n"
        f"    pair = load_pair({str(tiny_folder('llama', layers=5))!r}, overlap=True)\n"
        "    print(*(process.pid for process in pair.workers.processes), flush=True)\n"
        "    time.sleep(60)\n"
    )
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(word) for word in main.stdout.readline().split()]
        assert pids
        assert all(map(runs, pids))
    finally:
        main.kill()
        main.wait()
    assert eventually(lambda: not any(map(runs, pids)))


def test_ctrl_c_ends_everything(tiny_folder):
    app = Path(__file__).parent.parent / "appInference.py"
    words = ["--target_model", str(tiny_folder("llama", layers=5)), "--overlap", "--no-chat", "--length", "100000"]
    before = set(os.listdir("/dev/shm"))
    main = subprocess.Popen(
        [sys.executable, str(app), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    main.stdout.readline()  # the banner: everything is loaded
    os.killpg(main.pid, signal.SIGINT)
    _, errors = main.communicate(timeout=20)
    assert main.returncode == 130
    assert "Traceback" not in errors
    assert eventually(lambda: subprocess.run(["pgrep", "-g", str(main.pid)], capture_output=True).stdout == b"")
    assert set(os.listdir("/dev/shm")) == before


def test_a_pair_recovers_in_this_process(tiny_folder):
    cores = os.sched_getaffinity(0)
    pair = load_pair(str(tiny_folder("llama", layers=5)), overlap=True, target_precision="float32")
    config = DecodeConfig(max_new_tokens=20, eos_ids=())
    wanted = pair.generate(PROMPT, config, "target").ids
    os.kill(pair.workers.processes[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerError):
        pair.generate(PROMPT, config)
    pair.recover()
    assert pair.generate(PROMPT, config).ids == wanted
    assert os.sched_getaffinity(0) == cores
