"""Drafters in worker processes and under torchrun: specifications, devices, and a target with a remote drafter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helpers import HANG_SECONDS, ROOT
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.devices import DeviceSlot, available_cores
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.models.stack import DecoderStack
from pdevis.parallel.remote import RemoteDrafter, RemoteModel
from pdevis.parallel.worker_pool import WorkerPool

VOCAB = 264
PROMPT = [3, 14, 15, 92, 65, 35, 89]
GREEDY = DecodeConfig(max_new_tokens=20, gamma=4, eos_ids=())


def spec_of(folder: Path, precision: str = "float32") -> LoadSpec:
    """The drafter of a model folder, on the CPU."""
    source = find_source(str(folder))
    config, cpu = read_config(source), torch.device("cpu")
    return LoadSpec(str(folder), "drafter", source=source, config=config, device=cpu, precision=precision)


def device_slots(count: int) -> list[DeviceSlot]:
    """Cores for `count` ranks; if the machine has fewer, some ranks get the same core."""
    cores = available_cores()
    return [DeviceSlot(torch.device("cpu"), cores[i % len(cores)]) for i in range(count)]


def local_drafter(spec: LoadSpec, rule: DraftConfig) -> Drafter:
    model = build_model(spec)
    assert isinstance(model, DecoderStack)
    return Drafter(model, rule, VOCAB)


def remote_drafter(workers: WorkerPool, rule: DraftConfig) -> RemoteDrafter:
    return RemoteDrafter(RemoteModel(workers), rule)


def decode(
    target: DecoderStack, drafter: Drafter | RemoteDrafter, config: DecodeConfig
) -> tuple[list[int], DecodeStats]:
    stats = DecodeStats()
    events = speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=stats)
    return [event.id for event in events], stats


def counts(stats: DecodeStats) -> tuple[object, ...]:
    """The statistics that do not depend on time."""
    names = ("rounds", "drafted", "draft_steps", "accepted", "accept_lengths", "draft_lengths", "skipped", "depth")
    return tuple(getattr(stats, name) for name in names)


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; False if it does not hold before HANG_SECONDS."""
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def is_running(pid: int) -> bool:
    """True if a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def open_file_count() -> int:
    return len(os.listdir("/proc/self/fd"))


APP = str(ROOT / "appInference.py")
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
Row = dict[str, Any]


def torchrun(*command: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script on two ranks; `stdin` is the text that they read from there."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    settings = {"env": environment, "input": stdin, "capture_output": True, "text": True, "timeout": HANG_SECONDS}
    return subprocess.run([*launch, *command], **settings)


def one_object(done: subprocess.CompletedProcess[str]) -> Row:
    """The JSON object that rank 0 has printed; the other ranks must not print anything."""
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "rror" in line)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
