"""Commands in environments that lack something: a home folder, a writable folder, space on a disk, a reader of stdout.

Each command runs in this process, with tiny models, and must end with its result, or with one line and no traceback.
"""

from __future__ import annotations

import errno
import io
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.recordings import exact_trace
from pdevis.util.files import FileLock

OLD_FILES = ROOT / "tests" / "project" / "old_files"
SHORT = ("--k", "2", "--gen_len", "4", "--no-progress")


@dataclass(frozen=True)
class Command:
    """A command line: a script or a module, its arguments, and the file that it writes (below {out})."""

    program: str
    arguments: tuple[str, ...]
    needs_models: bool = True
    writes: str | None = None
    prints: bool = True  # on stdout
    long: bool = False  # it locks its output

    def argv(self, models: list[str], out: Path, inputs: Path) -> list[str]:
        words = [word.format(out=out, inputs=inputs, model=models[1]) for word in self.arguments]
        return [*(models if self.needs_models else []), *words]


def summary(name: str, file: str) -> Command:
    paths = ("--input", f"{OLD_FILES}/{file}", "--output", "{out}/s.json", "--plot", "{out}/s.png")
    return Command(f"summary/{name}/summary_{name}.py", paths, needs_models=False, writes="s.json")


def evaluation(name: str, *arguments: str, **facts: Any) -> Command:
    return Command(f"evaluation/{name}/evaluate_{name}.py", arguments, **facts)


RUN = {"writes": "o.json", "prints": False, "long": True}
SPEED = ("--prompts", "1", "--length", "4", "--modes", "exact", "--no-progress", "--no_memory")
COMMANDS = {
    "chat --prompt": Command("appInference.py", ("--prompt", "Hi", "--no-chat", "--length", "4")),
    "chat --json": Command("appInference.py", ("--prompt", "Hi", "--no-chat", "--length", "4", "--json")),
    "chat": Command("appInference.py", ("--no-chat", "--length", "4")),
    "mmlu": evaluation("mmlu", *SHORT, "--no-chat", "--output", "{out}/o.json", **RUN),
    "specbench": evaluation(
        "specbench", "--max_examples", "1", "--max_gen_len", "4", "--no-progress", "--out", "{out}/o.json", **RUN
    ),
    "ablation": evaluation("ablation", *SHORT, "--modes", "exact", "--output", "{out}/o.json", **RUN),
    "summary of mmlu": summary("mmlu", "mmlu.json"),
    "summary of wmt": summary("wmt", "wmt.json"),
    "summary of specbench": summary("specbench", "specbench.jsonl"),
    "summary of an ablation": summary("ablation", "ablation.json"),
    "summary of a speed comparison": summary("speed", "speed.json"),
    "simulate": Command(
        "pdevis.simulate",
        ("--trace", "{inputs}/exact.jsonl", "--plot", "{out}/s.png"),
        needs_models=False,
        writes="s.png",
    ),
    "speed": evaluation("speed", *SPEED, "--output", "{out}/o.json", writes="o.json", long=True),
    "speed without a file": evaluation("speed", *SPEED),
    "formats": evaluation(
        "formats",
        *("--model", "{model}", "--formats", "float32", "--widths", "1", "--prompts", "1", "--length", "4"),
        *("--repeats", "1"),
        needs_models=False,
    ),
    "tune": Command(
        "pdevis.tune",
        ("--prompts", "1", "--length", "8", "--repeats", "1", "--modes", "exact", "--output", "{out}/p.json"),
        writes="p.json",
        long=True,
    ),
    "lm_eval": Command("pdevis.lm_eval", ("ls", "tasks"), needs_models=False),
}
SLOW = ("specbench", "ablation", "speed", "speed without a file", "formats", "tune", "lm_eval")


def named(*, long: bool = False) -> list[Any]:
    """The commands as parameters of a test; `long`: those that lock their output."""
    return [
        pytest.param(command, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, command in COMMANDS.items()
        if command.long or not long
    ]


@dataclass
class Result:
    """Exit code and output of a command, and the folder that it wrote to."""

    code: int
    out: str
    err: str
    folder: Path
    command: Command

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def has_file(self) -> bool:
        return self.command.writes is None or (self.folder / self.command.writes).stat().st_size > 0

    def succeeded(self) -> bool:
        return (self.code, self.errors) == (0, []) and self.has_file() and bool(self.out) == self.command.prints


class FullStream(io.StringIO):
    """A text stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def start(tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """start(command, stdout=…, stderr=…, out=…): run it in this process."""
    models = ["--target_model", str(tiny_folder("llama", 0, 3)), "--drafter_model", str(tiny_folder("llama", 1, 3))]
    exact_trace(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))

    def run(command: Command, stdout: Any = None, stderr: Any = None, out: Path = folder) -> Result:
        argv = command.argv([*models, "--device", "cpu"], out, tmp_path)
        streams = {"stdin": io.StringIO("Hello\n/save\n"), "stdout": stdout or io.StringIO()}
        streams["stderr"] = stderr or io.StringIO()
        if command.program.endswith(".py"):
            main = runpy.run_path(str(ROOT / command.program))["main"]
        else:
            main = import_module(f"{command.program}.__main__").main
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            try:
                code = main(argv)
            except SystemExit as stopped:
                code = stopped.code
        texts = [stream.getvalue() if isinstance(stream, io.StringIO) else "" for stream in streams.values()]
        return Result(code or 0, texts[1], texts[2], out, command)

    return run


@pytest.mark.parametrize("command", named())
def test_without_a_home_folder(command: Command, start: Callable[..., Result], no_home: None) -> None:
    result = start(command)
    assert result.succeeded(), result


UNKNOWN_USER = """
import pwd, sys
def unknown(key):
    raise KeyError(f"getpwuid(): uid not found: {key}")
pwd.getpwuid = unknown
"""
SCORE = """
from pdevis.benchmarks.tasks import get_task
entry = {"question_id": 1, "prompt": "Say yes.", "label": "Das ist es.", "kwargs": [{}]}
entry["instruction_id_list"] = ["punctuation:no_comma"]
get_task(sys.argv[1]).score(entry, "Das ist es.")
"""
COMPILE = """
from pdevis import DecodeConfig, load_pair
pair = load_pair(sys.argv[1], device="cpu", compile=True)
assert pair.generate("Hi", DecodeConfig(max_new_tokens=2), method="target").ids
"""


def run_as_unknown_user(code: str, argument: str, folder: Path) -> None:
    """Run code in another process, where libraries are imported again, without a home folder."""
    homes = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    environment |= {"PYTHONPATH": str(ROOT), "PDEVIS_CACHE": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", UNKNOWN_USER + code, argument]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("benchmark", ["wmt", "ifeval"])  # nltk, which both need, stops without a home folder
def test_scores_for_a_user_that_the_system_does_not_know(benchmark: str, tmp_path: Path) -> None:
    run_as_unknown_user(SCORE, benchmark, tmp_path)


@pytest.mark.slow
def test_compiling_for_a_user_that_the_system_does_not_know(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    run_as_unknown_user(COMPILE, str(tiny_folder("llama", 0, 3)), tmp_path)


@pytest.mark.parametrize("command", named())
def test_folders_that_cannot_be_written(
    command: Command, start: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDEVIS_CACHE", "/proc/cache")  # not even root can write there
    monkeypatch.chdir("/proc")
    result = start(command)
    assert result.succeeded(), result


@pytest.mark.parametrize("command", [part for part in named() if part.values[0].writes])
def test_an_output_in_a_folder_that_cannot_be_written(command: Command, start: Callable[..., Result]) -> None:
    for out in (Path("/proc"), Path("/proc/new")):
        result = start(command, out=out)
        assert (result.code, result.out) == (1, "")
        assert len(result.errors) == 1
        assert str(out / "") in result.errors[0]
        assert result.err.count("\n") == 1  # found before any work is done


@pytest.mark.parametrize("command", named())
def test_stdout_on_a_full_disk(command: Command, start: Callable[..., Result]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = start(command, stdout=full)
    assert (result.code, len(result.errors)) == ((1, 1) if command.prints else (0, 0))
    assert all("No space left on device" in line for line in result.errors)
    assert result.has_file()


@pytest.mark.parametrize("command", named())
def test_a_reader_that_closes_the_pipe(command: Command, start: Callable[..., Result]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as closed:
        result = start(command, stdout=closed)
    assert (result.code, result.errors) == (int(command.prints), [])
    assert result.has_file()


@pytest.mark.parametrize("command", named())
def test_stderr_on_a_full_disk(command: Command, start: Callable[..., Result]) -> None:
    result = start(command, stderr=FullStream())
    assert result.succeeded(), result


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Let every write to a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", named())
def test_a_full_disk(command: Command, start: Callable[..., Result], full_disk: None) -> None:
    result = start(command)
    if command.writes is None:
        assert result.succeeded(), result
    else:
        assert (result.code, len(result.errors)) == (1, 1)
        assert str(result.folder) in result.errors[0]
        assert not (result.folder / command.writes).exists()


@pytest.mark.parametrize("command", named(long=True))
def test_an_output_that_another_run_is_writing(command: Command, start: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "out" / str(command.writes)
    with FileLock(path):
        result = start(command)
        assert (result.code, result.err.count("\n"), len(result.errors)) == (2, 1, 1)
        assert f"{path}: process {os.getpid()} on " in result.errors[0]
        assert [file.name for file in path.parent.iterdir()] == [f".{path.name}.lock"]
    assert start(command).succeeded()
    assert f".{path.name}.lock" not in [file.name for file in path.parent.iterdir()]
