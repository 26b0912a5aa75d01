"""Times of work on one device, and the least time that its bytes allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from pdevis.decoding.clock import Clock
from pdevis.models.layers import StackWeights
from pdevis.models.linear import DenseLinear

UNTIMED = 2  # runs of each kind of work before it is timed
COPY_BYTES = 1 << 30  # on a GPU
COPY_BYTES_ON_CPU = 1 << 26
COPIES = 12


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that some work takes, with the device synchronised at both ends."""
    clock = Clock(device)
    work()
    return clock.lap()


def interleaved_medians(works: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the median seconds of each kind of work, all timed in turn."""
    for work in works.values():
        for _ in range(UNTIMED):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds_of(work, device))
    return {name: median(found) for name, found in times.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of a copy in the device's memory: read and written."""
    count = COPY_BYTES if device.type == "cuda" else COPY_BYTES_ON_CPU
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device) for _ in range(COPIES)]
    return 2 * count / min(times)


def bytes_per_token(weights: StackWeights) -> int:
    """Return the bytes of plain weights that a forward of one token reads: all matrices, and one embedding row."""
    linears = [weights.head]
    for layer in weights.layers:
        linears += [layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down]
    assert all(isinstance(linear, DenseLinear) for linear in linears), "formats with plain matrices only"
    return sum(linear.weight.nbytes for linear in linears)
