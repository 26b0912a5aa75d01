"""Tests of the repository as a whole: imports, files, requirements."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import HANG_SECONDS, ROOT

SKIPPED = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "build", "dist", "results"}

IMPORT_ALL = """
import json, os, random, sys, warnings
warnings.simplefilter("error", ResourceWarning)
import logging, numpy, rich.console, torch, transformers  # rich draws a random number when it is imported
def state():
    return [dict(os.environ), random.getstate(), numpy.random.get_state()[1].tolist(), torch.initial_seed(),
            torch.get_rng_state().tolist(), torch.get_num_threads(), str(torch.get_default_dtype()), sys.path[:],
            len(logging.root.handlers), logging.root.level, len(warnings.filters), os.listdir(".")]
before, names = state(), ("environment", "random", "numpy", "torch seed", "torch state", "threads", "dtype", "sys.path",
                          "log handlers", "log level", "warning filters", "files")
problems = {}
for name in json.loads(sys.argv[1]):
    for loaded in [module for module in sys.modules if module.split(".")[0] == "pdevis"]:
        del sys.modules[loaded]
    try:
        __import__(name)
    except BaseException as error:
        problems[name] = f"{type(error).__name__}: {error}"
    changed = [label for label, old, new in zip(names, before, state()) if old != new]
    if changed:
        problems[name] = f"changes {', '.join(changed)}"
        before = state()
print(json.dumps(problems))
"""


def python_files(folder: Path = ROOT) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if not SKIPPED & set(path.relative_to(ROOT).parts)]


def test_every_module_imports_alone_and_does_nothing(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in python_files(ROOT / "pdevis")
        if path.name != "__main__.py"
    ]
    assert len(modules) > 10
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(modules)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=HANG_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {}
    assert run.stderr == ""


def section(text: str, name: str) -> str:
    return re.search(rf"^{name} = \[(.*?)\]$", text, re.M | re.S)[1]


def package(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def test_requirements_constraints_and_pyproject_agree() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["-e ."], "the list is pyproject.toml's"
    text = (ROOT / "pyproject.toml").read_text()
    needed = {package(requirement) for requirement in re.findall(r'"(.+?)"', section(text, "dependencies"))}
    assert {"torch", "transformers", "rich", "prompt-toolkit"} <= needed
    dev = {package(requirement) for requirement in re.findall(r'"(.+?)"', section(text, "dev"))}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
    pinned = {package(line) for line in pins}
    assert needed <= pinned, f"without a tested version: {needed - pinned}"
    assert pinned - needed - dev <= {"tokenizers"}


def test_third_party_imports_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = {package(name) for name in re.findall(r'"([\w-]+?)[>=<].*?"', text)} | {"tokenizers"}
    for path in python_files(ROOT / "pdevis"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pdevis"}:
                assert top.lower().replace("_", "-") in declared, f"{path.name} imports {top}"


def test_no_path_of_one_machine() -> None:
    """No file names a home folder, an absolute work folder or the address of a local server."""
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|Users|mnt)/\w|https?://(?:localhost|10\.|192\.168\.)")
    kinds = {".py", ".toml", ".txt", ".md", ".yaml", ".yml", ".json", ".jsonl", ""}
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        skipped = (SKIPPED | {"shared"}) & set(inside) or any(part.endswith(".egg-info") for part in inside)
        if path.is_file() and path.suffix in kinds and not skipped and path != Path(__file__):
            match = pattern.search(path.read_text(errors="replace"))
            assert not match, f"{path.relative_to(ROOT)}: {match[0]}"


def package_map() -> dict[str, set[str]]:
    """Words of the package map in docs/architecture.md, by the folder that their row is about."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    words: dict[str, set[str]] = {}
    folders: list[tuple[int, str]] = []  # indentation and path of the folders around a row, the innermost last
    for row in re.search(r"```\n(pdevis/\n.*?)```", text, re.S)[1].splitlines():
        indent, name = len(row) - len(row.lstrip()), row.split()[0]
        while folders and indent <= folders[-1][0]:
            folders.pop()
        if name.endswith("/"):
            folders.append((indent, f"{folders[-1][1] if folders else ''}{name}"))
        words.setdefault(folders[-1][1] if folders else "", set()).update(re.findall(r"\w+", row))
    return words


def test_package_map_names_every_module() -> None:
    words = package_map()
    for path in python_files(ROOT / "pdevis"):
        folder = f"{path.parent.relative_to(ROOT).as_posix()}/"
        if path.stem not in ("__init__", "__main__"):
            assert path.stem in words[folder], path
    assert [folder for folder in words if not (ROOT / folder).is_dir()] == []


def test_make_help_names_the_targets() -> None:
    text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in text for target in ("chat", "test", "test-all", "lint", "format", "clean"))


@pytest.mark.parametrize(("python", "expected"), [("no-such-python", "not found"), ("false", "older than Python 3.10")])
def test_make_reports_a_missing_or_old_python_on_one_line(python: str, expected: str, tmp_path: Path) -> None:
    command = ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode
    assert expected in run.stderr.splitlines()[0]
    assert not (tmp_path / "venv").exists()
