"""Graphs: work on fixed buffers that is recorded once and then replayed as a whole.

On CUDA a replay is one launch, however many kernels the work has; a small model is otherwise bound by their launches.
On CPU `EagerGraph` runs the same work again, so that all that is built on graphs is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch

WARM_UPS = 3  # runs before a capture: libraries allocate workspaces and choose kernels in the first ones


class Graph(Protocol):
    """Recorded work on buffers that stay where they are."""

    def capture(self, work: Callable[[], None], prepare: Callable[[], None]) -> None:
        """Record `work`, which reads and writes buffers only and may not look at the device's results.

        Args:
            work: to be replayed.
            prepare: sets the buffers before each trial run of `work`, and before it is recorded.
        """
        ...

    def replay(self) -> None:
        """Do the recorded work with what the buffers hold now."""
        ...


class EagerGraph:
    """Runs the work at each replay."""

    def capture(self, work: Callable[[], None], prepare: Callable[[], None]) -> None:
        self._work = work
        prepare()
        work()

    def replay(self) -> None:
        self._work()


class CudaGraph:
    """A CUDA graph. All graphs share one memory pool per device: what one leaves there, no other reads."""

    _pools: ClassVar[dict[torch.device, Any]] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], None], prepare: Callable[[], None]) -> None:
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    prepare()
                    work()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            prepare()
            pool = self._pools.setdefault(self.device, torch.cuda.graph_pool_handle())
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                work()

    def replay(self) -> None:
        self._graph.replay()


def make_graph(device: torch.device) -> Graph:
    """Return a graph for work on a device."""
    return CudaGraph(device) if device.type == "cuda" else EagerGraph()
