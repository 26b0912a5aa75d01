"""The lists of files in docs/architecture.md: what a prompt, a benchmark item, a summary and the decode loop use."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from helpers import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CO_OPTIMIZED = 1  # set for functions, not for the bodies of modules and classes
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")
PRINT_CORE = """
import json, sys, pdevis.decoding.speculative
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "pdevis"]))
"""


def listed_files(section: str) -> list[set[str]]:
    """Files of each code block of a section that lists files."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = (set(re.findall(r"^ *([\w/]+\.py) ", block, re.M)) for block in re.findall(r"```\n(.*?)```", text, re.S))
    return [files for files in blocks if files]


@contextmanager
def recorded_files() -> Iterator[set[str]]:
    """Record the files of this repository in which a function is called."""
    files: set[str] = set()

    def record(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & CO_OPTIMIZED and code.co_name not in COMPREHENSIONS:
            files.add(code.co_filename)

    before = sys.gettrace()
    threading.settrace(record)  # not setprofile, which is called for functions in C too
    sys.settrace(record)
    try:
        yield files
    finally:
        sys.settrace(before)
        threading.settrace(before)
        inside = {Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(f"{ROOT}{os.sep}")}
        files.clear()
        files.update(file for file in inside if not file.startswith((".venv", "tests")))


@pytest.fixture
def files_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., set[str]]:
    """files_of(script, *arguments): the files that a run passes. Imports come first: they are not part of it."""
    monkeypatch.chdir(tmp_path)
    for path in sorted((ROOT / "pdevis").rglob("*.py")):
        if path.name != "__main__.py":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))

    def run(script: str, *arguments: str) -> set[str]:
        main: Callable[[Sequence[str]], int] = runpy.run_path(str(ROOT / script))["main"]
        with recorded_files() as files:
            assert main(list(arguments)) == 0
        return files

    return run


@pytest.mark.slow
def test_files_of_a_prompt_an_item_and_a_summary(embedded_folder: Path, files_of: Callable[..., set[str]]) -> None:
    (prompt,) = listed_files("One prompt")
    item, summary = listed_files("One benchmark item")
    assert files_of("appInference.py", "--prompt", "Hi", "--length", "8", "--device", "cpu") == prompt
    argv = ["--k", "1", "--gen_len", "8", "--device", "cpu", "--no-progress"]
    assert files_of("evaluation/mmlu/evaluate_mmlu.py", *argv) - prompt == item
    results = ["--input", "results/mmlu.json", "--output", "summary.json", "--plot", "plot.png"]
    assert files_of("summary/mmlu/summary_mmlu.py", *results) - prompt - item == summary


def test_listed_files_exist_and_are_counted() -> None:
    (prompt,) = listed_files("One prompt")
    item, summary = listed_files("One benchmark item")
    assert [file for file in prompt | item | summary if not (ROOT / file).is_file()] == []
    text = " ".join(PAGE.split())
    assert f"functions of these {len(prompt)} files" in text
    assert f"and these {len(item)}:" in text
    assert (len(summary), "passes these nine" in text) == (9, True)
    assert not prompt & item
    assert not (prompt | item) & summary


def test_core_modules_are_those_of_the_page() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PRINT_CORE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    block = re.search(r"\*\*The separable core\*\*.*?```\n(.*?)```", PAGE, re.S)[1]
    assert sorted(block.split()) == sorted(json.loads(run.stdout))
    assert f"these {len(block.split())} modules" in PAGE
