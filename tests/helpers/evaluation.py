"""Helpers for tests of the evaluate scripts: run one in this process, and compare results without timings."""

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
from pdevis.benchmarks.tasks import Task

SLOW_PAIR = ROOT / "tests" / "benchmarks" / "runs" / "slow_pair.py"
# categories of Spec-Bench whose questions have two turns
MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def script_of(benchmark: str) -> Path:
    return ROOT / "evaluation" / benchmark / f"evaluate_{benchmark}.py"


class Scripts:
    """Runs evaluate scripts in this process, in a separate folder, with tiny models."""

    def __init__(self, target: Path, drafter: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.models = ["--target_model", str(target), "--drafter_model", str(drafter), "--device", "cpu"]
        self.capsys = capsys

    def __call__(self, benchmark: str, *argv: object, models: bool = True) -> tuple[int, str]:
        """Exit code and stderr of a run, also if argparse ends it."""
        main = runpy.run_path(str(script_of(benchmark)))["main"]
        words = [*(self.models if models else []), *map(str, argv)]
        self.capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code
        streams = self.capsys.readouterr()
        assert streams.out == ""
        return code, streams.err

    def start(self, benchmark: str, *argv: object, launcher: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        """Start a script in another process."""
        command = [*(launcher or [sys.executable]), str(script_of(benchmark)), *self.models, *map(str, argv)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def timeless(value: Any) -> Any:
    """A result without its timings."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if "seconds" not in key and "per_sec" not in key}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def score_corpus(task: Task, entries: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """Metrics of all answers together, from the scores of each."""
    return task.corpus(entries, texts, [task.score(entry, text) for entry, text in zip(entries, texts)])
