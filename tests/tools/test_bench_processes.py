"""The tools that time several processes run on a tiny model; the times that they measure are not checked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import HANG_SECONDS, ROOT
from pdevis.devices import available_cores

needs_two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")


def run_tool(name: str, *argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tools").glob("bench_*.py")))
def test_help(name):
    run = run_tool(name, "--help")
    assert run.returncode == 0, run.stderr
    assert f"python tools/{name}" in run.stdout


@needs_two_cores
def test_collectives():
    run = run_tool("bench_collectives.py", "--numbers", 8, "--repeats", 20)
    assert run.returncode == 0, run.stderr
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == ["shared memory", "gloo"]


@needs_two_cores
@pytest.mark.slow
def test_lanes(tiny_folder):
    argv = ("--model", tiny_folder("llama", vocab_size=2000), "--precision", "float32", "--repeats", 2, "--each")
    run = run_tool("bench_lanes.py", *argv)
    assert run.returncode == 0, run.stderr
    *repeats, first, first_on_two, later, later_on_two = run.stdout.splitlines()
    assert len(repeats) == 2
    assert all(line.startswith("3 tokens, first") for line in (first, first_on_two))
    assert all(line.startswith("1 token, parallel") for line in (later, later_on_two))
    assert "x cpu:0 (" in later_on_two
    run = run_tool("bench_lanes.py", *argv[:2], "--repeats", 1)
    assert (run.returncode, run.stderr) == (2, "error: --repeats: 1 must be at least 2, for quartiles\n")
