"""The worked examples of CONTRIBUTING.md: applied to a copy of this repository, where their tests then run.

Before each block there is a comment: <!-- EXAMPLE: edit PATH --> for a diff, <!-- EXAMPLE: new PATH --> for a new file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import HANG_SECONDS, ROOT

BLOCK = re.compile(r"^<!-- (\w+): (edit|new) (\S+) -->\n```(\w+)\n(.*?)^```$", re.M | re.S)
SKIPPED = (".git", ".venv", ".pytest_cache", ".ruff_cache", "__pycache__", "results", "build", "dist", "*.egg-info")
EXAMPLES = {  # example: its tests, and the words that select them
    "family": (("tests/models/test_models.py", "tests/loading/weights/test_families.py"), "phi3"),
    "format": (("tests/models/test_float8.py",), "float8"),
    "benchmark": (
        (
            "tests/benchmarks/tasks/boolq/test_boolq.py",
            "tests/benchmarks/tasks/test_tasks_items.py",
            "tests/project/test_data.py",
        ),
        "boolq or prepare_all",
    ),
    "rule": (("tests/drafting/test_alternate.py",), "alternate"),
}
MAX_FILE_LINES, MAX_FILES_IN_FOLDER = 400, 9  # as in test_house_metrics.py
PRINT_PACKAGE = "import pdevis; print(pdevis.__file__)"


@dataclass(frozen=True)
class Block:
    """One block of an example: a diff of a file, or a new file."""

    example: str
    action: str
    path: str
    language: str
    content: str


BLOCKS = [Block(*match) for match in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]


def apply(block: Block, root: Path) -> None:
    """Write a new file, or replace the lines of a diff's context and removals by its context and additions."""
    path = root / block.path
    if block.action == "new":
        assert not path.exists(), f"{block.path} exists already: the example must have another name"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.content, encoding="utf-8")
        return
    lines = block.content.splitlines()
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] not in skip) for skip in ("+", "-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{block.path} must have these lines once:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def copy_of_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contributing") / "pdevis"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*SKIPPED, "shared"))
    for block in BLOCKS:
        apply(block, root)
    return root


def run_python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)


def test_every_block_belongs_to_an_example() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {block.example for block in BLOCKS} == set(EXAMPLES)
    assert len(BLOCKS) == text.count("```") // 2, "a block without a comment before it is not tested"
    assert all((block.language == "diff") == (block.action == "edit") for block in BLOCKS)


@pytest.mark.slow
def test_examples_work(copy_of_repository: Path) -> None:
    """All four in one interpreter, since starting one costs more than the tests."""
    assert Path(run_python(copy_of_repository, "-c", PRINT_PACKAGE).stdout).is_relative_to(copy_of_repository)
    paths = [path for tests, _ in EXAMPLES.values() for path in tests]
    words = [word for _, word in EXAMPLES.values()]
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *paths, "-k", " or ".join(words)]
    run = run_python(copy_of_repository, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    for path in paths:
        assert re.search(rf"^PASSED {re.escape(path)}", run.stdout, re.M), (path, run.stdout)


def test_examples_keep_the_limits_of_the_tree(copy_of_repository: Path) -> None:
    for block in BLOCKS:
        path = copy_of_repository / block.path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES, block.path
        assert len(list(path.parent.glob("*.py"))) <= MAX_FILES_IN_FOLDER, block.path


def test_examples_are_formatted(copy_of_repository: Path) -> None:
    pytest.importorskip("ruff")
    changed = sorted({block.path for block in BLOCKS if block.path.endswith(".py")})
    for command in (["check"], ["format", "--check"]):
        run = run_python(copy_of_repository, "-m", "ruff", *command, *changed)
        assert run.returncode == 0, run.stdout + run.stderr
