"""Capture and replay, with a stand-in for torch's CUDA functions."""

from __future__ import annotations

import gc
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from pdevis.models.static import graphs
from pdevis.models.static.graphs import WARM_UPS, CudaGraph, EagerGraph, make_graph

GPU = torch.device("cuda:0")


class FakeStream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def wait_stream(self, other: FakeStream) -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The calls of a capture, on a machine without a GPU."""
    made: list[str] = []
    current, fails = FakeStream("current", made), []

    class FakeGraph:
        def replay(self) -> None:
            made.append("replay")

    @contextmanager
    def record(graph: FakeGraph, pool: Any, stream: FakeStream) -> Any:
        assert not gc.isenabled()
        made.append(f"begin in pool {pool} on {stream.name}")
        yield
        if fails:
            raise RuntimeError(fails.pop())
        made.append("end")

    pools = iter("ABC")
    monkeypatch.setattr(CudaGraph, "_pools", {})
    monkeypatch.setattr(CudaGraph, "_streams", {})
    cuda = graphs.torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(cuda, "Stream", lambda device: FakeStream("side", made))
    monkeypatch.setattr(cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(cuda, "graph", record)
    monkeypatch.setattr(cuda, "set_stream", lambda stream: made.append(f"set {stream.name}"))
    made_fails = fails

    class Calls(list):
        fails = made_fails

    return Calls([made])


def test_capture_and_replay(calls):
    (made,) = calls
    graph = make_graph(GPU)
    graph.capture(lambda: made.append("work"), lambda: made.append("prepare"))
    trial = ["prepare", "work"] * WARM_UPS
    assert made == [
        "side waits for current",
        *trial,
        "current waits for side",
        "prepare",
        "begin in pool A on side",
        "work",
        "end",
    ]
    made.clear()
    graph.replay()
    assert made == ["replay"]
    make_graph(GPU).capture(lambda: None, lambda: None)
    assert "begin in pool A on side" in made, "graphs share pool and stream"
    assert gc.isenabled()


def test_tensors_of_the_work_stay_alive(calls):
    class Buffer:
        freed = False

        def __del__(self) -> None:
            Buffer.freed = True

    graph = CudaGraph(GPU)

    def capture() -> None:
        buffer = Buffer()
        graph.capture(lambda: buffer, lambda: None)

    capture()
    gc.collect()
    assert not Buffer.freed, "a replay reads the memory of what the work refers to"
    graph.replay()


def test_a_capture_that_fails_leaves_the_device_usable(calls):
    (made,) = calls
    calls.fails.append("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        CudaGraph(GPU).capture(lambda: None, lambda: None)
    assert made[-1] == "set current"
    assert gc.isenabled()
    CudaGraph(GPU).capture(lambda: None, lambda: None)
    assert "begin in pool B on side" in made


def test_on_cpu_the_work_runs_again():
    graph, made = make_graph(torch.device("cpu")), []
    assert isinstance(graph, EagerGraph)
    graph.capture(lambda: made.append("work"), lambda: made.append("prepare"))
    graph.replay()
    assert made == ["prepare", "work", "work"]
