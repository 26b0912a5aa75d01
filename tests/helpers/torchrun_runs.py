"""Helpers of the tests under torchrun: start two ranks, read what rank 0 prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from helpers import ROOT

APP = str(ROOT / "appInference.py")
TIMEOUT_SECONDS = 120  # a start takes about 10
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
    settings = {"env": environment, "input": stdin, "capture_output": True, "text": True, "timeout": TIMEOUT_SECONDS}
    return subprocess.run([*launch, *command], **settings)


def one_object(done: subprocess.CompletedProcess[str]) -> Row:
    """The JSON object that rank 0 has printed; the other ranks must not print anything."""
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "rror" in line)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
