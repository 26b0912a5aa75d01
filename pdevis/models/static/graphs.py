"""Graphs: work on fixed buffers that is recorded once and then replayed as a whole.

On CUDA a replay is one launch, however many kernels the work has; a small model is otherwise bound by their launches.
On CPU `EagerGraph` runs the same work again, so that all that is built on graphs is tested without a GPU.
"""

from __future__ import annotations

import gc
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
    """A CUDA graph. All graphs of a device share a memory pool and the stream of their captures.

    What one graph leaves in the pool, no other reads. Memory of the pool belongs to its stream, as do the workspaces of
    cuBLAS.
    """

    _pools: ClassVar[dict[torch.device, Any]] = {}
    _streams: ClassVar[dict[torch.device, Any]] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graph = torch.cuda.CUDAGraph()
        self._work: Callable[[], None] | None = None

    def capture(self, work: Callable[[], None], prepare: Callable[[], None]) -> None:
        self._work = work  # a replay reads the tensors that it refers to
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            if self.device not in self._streams:
                self._streams[self.device] = torch.cuda.Stream(self.device)
            stream = self._streams[self.device]
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    prepare()
                    work()
            current.wait_stream(stream)
            prepare()
            if self.device not in self._pools:
                self._pools[self.device] = torch.cuda.graph_pool_handle()
            gc.collect()
            gc.disable()  # freeing another graph's memory would end a capture
            try:
                with torch.cuda.graph(self._graph, pool=self._pools[self.device], stream=stream):
                    work()
            except BaseException:  # torch may leave the stream and the pool of a failed capture in use
                torch.cuda.set_stream(current)
                del self._pools[self.device]
                raise
            finally:
                gc.enable()

    def replay(self) -> None:
        self._graph.replay()


def make_graph(device: torch.device) -> Graph:
    """Return a graph for work on a device."""
    return CudaGraph(device) if device.type == "cuda" else EagerGraph()
