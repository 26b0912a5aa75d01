"""What the tests of drafters in processes of their own share: plans, places, and a pair of a local target with one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.devices import DeviceSlot, cores
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.build import build_model
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.loading.load_spec import LoadSpec
from pdevis.models.stack import DecoderStack
from pdevis.parallel.remote import RemoteDrafter, RemoteModel
from pdevis.parallel.worker_pool import WorkerPool

VOCAB = 264
PROMPT = [3, 14, 15, 92, 65, 35, 89]
GREEDY = DecodeConfig(max_new_tokens=20, gamma=4, eos_ids=())


def plan_of(folder: Path, precision: str = "float32") -> LoadSpec:
    source = find_source(str(folder))
    return LoadSpec(str(folder), "drafter", source, read_config(source), torch.device("cpu"), precision)


def places(count: int) -> list[DeviceSlot]:
    """Cores for so many ranks; on a machine with fewer, some share one."""
    there = cores()
    return [DeviceSlot(torch.device("cpu"), there[i % len(there)]) for i in range(count)]


def local(plan: LoadSpec, rule: DraftConfig) -> Drafter:
    model = build_model(plan)
    assert isinstance(model, DecoderStack)
    return Drafter(model, rule, VOCAB)


def remote(workers: WorkerPool, rule: DraftConfig) -> RemoteDrafter:
    return RemoteDrafter(workers, rule, RemoteModel(workers))


def decode(
    target: DecoderStack, drafter: Drafter | RemoteDrafter, config: DecodeConfig
) -> tuple[list[int], DecodeStats]:
    stats = DecodeStats()
    return [
        event.id for event in speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=stats)
    ], stats


def counts(stats: DecodeStats) -> tuple[object, ...]:
    """What does not depend on time."""
    names = ("rounds", "drafted", "draft_steps", "accepted", "accept_lengths", "draft_lengths", "skipped", "depth")
    return tuple(getattr(stats, name) for name in names)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
