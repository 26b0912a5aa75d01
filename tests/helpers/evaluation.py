"""What the tests of the evaluate scripts share: running one in this process, and comparing results without timings."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

SLOW_PAIR = ROOT / "tests" / "slow_pair.py"
BENCHMARKS = ("wmt", "mmlu", "mgsm", "math", "ifeval", "specbench")


def script_of(benchmark: str) -> Path:
    return ROOT / "evaluation" / benchmark / f"evaluate_{benchmark}.py"


class Scripts:
    """Runs evaluate scripts in this process, in a folder of their own, with tiny models."""

    def __init__(self, target: Path, drafter: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.models = ["--target_model", str(target), "--drafter_model", str(drafter), "--device", "cpu"]
        self.capsys = capsys

    def __call__(self, benchmark: str, *argv: object, models: bool = True) -> tuple[int, str]:
        """Exit code and stderr of a run; mistakes that argparse finds count too."""
        main = runpy.run_path(str(script_of(benchmark)))["main"]
        words = [*(self.models if models else []), *map(str, argv)]
        self.capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as leaving:
            code = leaving.code
        streams = self.capsys.readouterr()
        assert streams.out == ""
        return code, streams.err

    def start(self, benchmark: str, *argv: object, launcher: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        """The same in another process."""
        command = [*(launcher or [sys.executable]), str(script_of(benchmark)), *self.models, *map(str, argv)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def timeless(value: Any) -> Any:
    """A result without what the clock has a part in."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if "seconds" not in key and "per_sec" not in key}
    return [timeless(each) for each in value] if isinstance(value, list) else value
