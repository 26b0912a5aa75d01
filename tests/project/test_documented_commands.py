"""Every command in README and docs: run with tiny models and limits if possible, else parsed by its own parser."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.recordings import make_profile, save
from pdevis.lm_eval.arguments import sort_settings

DOCUMENTS = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    "Data/README.md",
]
STARTS = ("python ", "make ", "torchrun ", "accelerate launch ", "pip install ", "echo ")
PACKAGES = ("pdevis.tune", "pdevis.simulate", "pdevis.calibrate", "pdevis.verify")
MODULES = {package: f"{package.replace('.', '/')}/__main__.py" for package in PACKAGES}
NOT_HERE = (
    "FOLDER",
    "DRAFTER",
    "FILE",
    "qwen-",
    "llama-",
    "cuda",
    "ranks",
    "Data/",
    "my-data",
    "e1.jsonl",
    "o2.jsonl",
    "pair-exact",
)
LIMITS = {  # flags that keep a documented run short
    "appInference.py": ["--length", "4"],
    "evaluate_specbench.py": ["--max-examples", "1", "--max-gen-len", "4", "--no-progress"],
    "evaluate_ablation.py": ["--k", "1", "--gen_len", "4", "--modes", "exact", "--gammas", "2", "--no-progress"],
    "evaluate_mmlu.py": ["--k", "1", "--gen_len", "4", "--no-progress"],
}


@dataclass(frozen=True)
class Command:
    """A documented command: the script's path or module, and its arguments."""

    document: str
    text: str
    script: str
    argv: tuple[str, ...]


def lines_of(document: str) -> list[str]:
    """Return the commands of a document as they are written, continuation lines joined."""
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith(STARTS) and "`" not in line]


def command_of(document: str, line: str) -> Command | None:
    """Split a command that runs Python; None for make and pip."""
    words = shlex.split(line.rpartition("| ")[2], comments=True)
    if words[0] == "torchrun" or words[:2] == ["accelerate", "launch"]:
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    elif words[0] != "python":
        return None
    elif words[1] == "-m":
        words = words[2:]
    else:
        words = words[1:]
    return Command(document, line, words[0], tuple(words[1:]))


COMMANDS = [command for doc in DOCUMENTS for line in lines_of(doc) if (command := command_of(doc, line))]


def namespace(script: str) -> dict[str, Any]:
    """Return what a script or module defines, without running its main function."""
    if script.endswith(".py"):
        path = ROOT / script
    else:
        path = ROOT / MODULES.get(script, script.replace(".", "/") + ".py")
    assert path.is_file(), f"{script} does not exist"
    return runpy.run_path(str(path))


def test_documents_have_commands() -> None:
    counts = {document: len(lines_of(document)) for document in DOCUMENTS}
    assert counts["README.md"] >= 8
    assert sum(counts.values()) >= 40


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_and_pip_commands_exist(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for line in lines_of(document):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:.*## ", makefile, re.M), line
        if words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[(.+?)\]", line):
                assert re.search(rf"^{extra} = \[", project, re.M), line
            assert "-r" not in words or (ROOT / words[words.index("-r") + 1]).is_file(), line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.document}: {command.text[:60]}")
def test_command_is_parsed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown flags and wrong values fail; files and models are not opened, except a profile, which is made here."""
    monkeypatch.chdir(tmp_path)
    if command.script == "pdevis.lm_eval":
        if "--model_args" in command.argv:
            text = command.argv[command.argv.index("--model_args") + 1]
            sort_settings(dict(item.split("=") for item in text.split(",")))
        return
    if "--profile" in command.argv:
        save(make_profile("smollm2-135m", "self"), tmp_path / command.argv[command.argv.index("--profile") + 1])
    try:
        namespace(command.script)["build_parser"]().parse_args(list(command.argv))
    except SystemExit as stopped:
        pytest.fail(f"{command.text}: exit code {stopped.code}")


def is_runnable(command: Command) -> bool:
    """Return True if a command needs nothing but models, which tiny ones replace."""
    own = command.script in ("appInference.py", "pdevis.simulate") or re.match(
        r"(evaluation|summary)/(mmlu|specbench|ablation)/", command.script
    )
    return bool(own) and not any(word in command.text for word in NOT_HERE) and "--profile" not in command.argv


def shortened(command: Command, models: list[str]) -> list[str]:
    name = Path(command.script).name
    argv = [*command.argv, *(models if name in LIMITS else []), *LIMITS.get(name, [])]
    if name == "appInference.py" and "--prompt" not in argv and "--draft_device" not in argv:
        argv += ["--prompt", "Hello"]
    return argv


@pytest.mark.parametrize("document", ["README.md", "docs/evaluation.md", "docs/devices.md"])
def test_commands_run(
    document: str,
    folders: Callable[[str], tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of the document, so that a summary finds the results of the run before it; one process each."""
    monkeypatch.chdir(tmp_path)
    target, drafter = folders("llama")
    models = ["--target_model", target, "--drafter_model", drafter, "--device", "cpu"]
    several = ("--overlap", "--draft_device")  # starts processes: tests/parallel runs those
    commands = [command for command in COMMANDS if command.document == document and is_runnable(command)]
    commands = [command for command in commands if not set(several) & set(command.argv)]
    assert len(commands) >= 2, document
    for command in commands:
        if "partial.jsonl" in command.text or ("--link_us" in command.argv and "--target_ms" not in command.argv):
            continue  # needs an interrupted run, or timings that are measured on two cores
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        code = namespace(command.script)["main"](shortened(command, models))
        assert code == 0, (command.text, capsys.readouterr().err)


def test_python_example_of_the_readme(embedded_folder: Path) -> None:
    """The block runs as it is written, on the embedded model, with fewer tokens."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.S)[1]
    shorter = block.replace("max_new_tokens=64", "max_new_tokens=8").replace(
        "temperature=0.7,", "max_new_tokens=4, temperature=0.7,"
    )
    assert shorter != block
    exec(compile(shorter, "README.md", "exec"), {})


def run_from_to(benchmark: str, folder: Path) -> dict[str, Any]:
    """Evaluate two samples, eight tokens each, and summarise with a plot; return the summary."""
    lines = benchmark == "specbench"
    result, summary, plot = (folder / name for name in (f"out.json{'l' * lines}", "summary.json", "plot.png"))
    few = (
        ["--max-examples", "2", "--max-gen-len", "8", "--out"] if lines else ["--k", "2", "--gen_len", "8", "--output"]
    )
    argv = ["--device", "cpu", *few, str(result)]
    assert namespace(f"evaluation/{benchmark}/evaluate_{benchmark}.py")["main"](argv) == 0
    argv = ["--input", str(result), "--output", str(summary), "--plot", str(plot)]
    assert namespace(f"summary/{benchmark}/summary_{benchmark}.py")["main"](argv) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    return json.loads(summary.read_text())


@pytest.mark.parametrize(
    "benchmark", ["mmlu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wmt", "mgsm", "math", "ifeval"))]
)
def test_benchmark_from_run_to_plot(embedded_folder: Path, tmp_path: Path, benchmark: str) -> None:
    summary = run_from_to(benchmark, tmp_path)
    assert (summary["items"], summary["errors"]) == (2, 0)
    assert summary["headline"]["same_as_target"]["share"] == 1


@pytest.mark.slow
def test_specbench_from_run_to_plot(embedded_folder: Path, tmp_path: Path) -> None:
    summary = run_from_to("specbench", tmp_path)
    assert (summary["items"], summary["errors"]) == (2, 0)
    assert summary["headline"]["same_as_target"]["share"] == 1
