"""What the tests of ranks share: starting them with torchrun, and what the first of them prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from helpers import ROOT

APP = str(ROOT / "appInference.py")
SECONDS = 120  # a limit; a start takes about 10
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
Row = dict[str, Any]


def torchrun(*command: str, said: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`said`: what is written to its stdin."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    settings = {"env": environment, "input": said, "capture_output": True, "text": True, "timeout": SECONDS}
    return subprocess.run([*launch, *command], **settings)


def one_object(done: subprocess.CompletedProcess[str]) -> Row:
    """What rank 0 has printed: nobody has printed anything else."""
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "rror" in line)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)
