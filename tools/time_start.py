"""Print where the time of a one-shot answer goes, from imports to exit, and how long a chat takes to start.

python tools/time_start.py                  # the embedded model, 8 tokens
python tools/time_start.py --runs 5         # the smallest times of 5 runs

A fresh process per run goes through the stages one by one. Another one runs the whole command, `python appInference.py
--prompt Hi`; what it takes longer is the rest. A third one is a chat, timed until its first line; its CPU seconds are
those of the whole process, which ends then. The first run may also read files from disk and prepare weights that are
kept: `--runs 2` shows a warm start. CPU seconds are those of all threads, and hardly depend on other programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pdevis.cli import DEFAULT_TARGET, Parser, run_main
from pdevis.util.argtypes import positive_int

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Hi"
REST = "the rest: flags, display, exit"
CHAT = "a chat, until its first line"


@dataclass(frozen=True)
class Stage:
    """A part of a run, with its duration and the time that all threads spent computing."""

    name: str
    wall_seconds: float
    cpu_seconds: float


class StageTimer:
    """Times the stages of this process, one after another."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self._wall, self._cpu = time.perf_counter(), 0.0

    def finish(self, name: str) -> None:
        """End a stage, which began when the last one ended."""
        wall, cpu = time.perf_counter(), sum(os.times()[:2])
        self.stages.append(Stage(name, wall - self._wall, cpu - self._cpu))
        self._wall, self._cpu = wall, cpu


def run_stages(model: str, length: int) -> list[Stage]:
    """Load a model as target and drafter of the default formats and answer, as the command does."""
    timer = StageTimer()
    timer.finish("Python")
    import torch

    timer.finish("import torch")
    import transformers  # noqa: F401

    timer.finish("import transformers")
    from pdevis.config import DecodeConfig
    from pdevis.loading.checkpoint import find_source, read_config, read_tokenizer, stop_ids
    from pdevis.loading.model_builder import LoadSpec, build_model
    from pdevis.models.linear import resolve_precision
    from pdevis.pair import SpeculativePair

    timer.finish("import pdevis")
    source, cpu = find_source(model), torch.device("cpu")
    config, tokenizer = read_config(source), read_tokenizer(source)
    timer.finish("config and tokenizer")
    models = {}
    for role in ("drafter", "target"):
        precision = resolve_precision("auto", cpu, role)
        models[role] = build_model(LoadSpec(model, role, source=source, config=config, device=cpu, precision=precision))
        timer.finish(f"weights of the {role}, {precision}")
    eos_ids = stop_ids(None, config, tokenizer)
    pair = SpeculativePair(models["target"], models["drafter"], tokenizer, eos_ids, labels={"target": model})
    pair.generate(PROMPT, DecodeConfig(max_new_tokens=length))
    timer.finish(f"the answer, {length} tokens")
    return timer.stages


def time_command(words: Sequence[str]) -> tuple[str, Stage]:
    """Run a Python script in a new process; return its output and what it took. Raises ValueError if it fails."""
    begin, before = time.perf_counter(), os.times()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().removeprefix("error: ") or f"{words[0]}: exit code {done.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, Stage("the whole command", time.perf_counter() - begin, cpu)


def time_chat(words: Sequence[str]) -> Stage:
    """Start a chat in a new process; return what it took until its first line. Raises ValueError if it fails."""
    begin, before = time.perf_counter(), os.times()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *words], env=environment, text=True, **pipes) as process:
        line, wall = process.stdout.readline(), time.perf_counter() - begin
        rest = process.communicate()[1]
    if not line:
        raise ValueError(rest.strip().removeprefix("error: "))
    after = os.times()  # of the whole process: the chat ends at once
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Stage(CHAT, wall, cpu)


def measure(model: str, length: int) -> list[Stage]:
    """Time the stages in one process, the whole command in another, and the start of a chat in a third."""
    flags = ["--model", model, "--length", str(length), "--stages"]
    stages = [Stage(**fields) for fields in json.loads(time_command([__file__, *flags])[0])]
    command = [str(ROOT / "appInference.py"), "--target_model", model, "--device", "cpu", "--length", str(length)]
    return [*stages, time_command([*command, "--prompt", PROMPT])[1], time_chat(command)]


def summarize(runs: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Return the smallest times of each stage, and the rest: what the command takes longer than all stages."""
    *stages, whole, chat = (
        Stage(same[0].name, min(run.wall_seconds for run in same), min(run.cpu_seconds for run in same))
        for same in zip(*runs, strict=True)
    )
    wall, cpu = (sum(getattr(stage, name) for stage in stages) for name in ("wall_seconds", "cpu_seconds"))
    return [*stages, Stage(REST, whole.wall_seconds - wall, whole.cpu_seconds - cpu), whole, chat]


def print_stages(stages: Sequence[Stage]) -> None:
    """Print a table with a row per stage."""
    from pdevis.util.console import make_console, make_table

    rows = [(stage.name, f"{stage.wall_seconds:.2f}", f"{stage.cpu_seconds:.2f}") for stage in stages]
    make_console().print(make_table(("stage", "seconds", "CPU seconds"), rows))


def run(args: Namespace) -> None:
    if args.stages:
        print(json.dumps([asdict(stage) for stage in run_stages(args.model, args.length)]))
        return
    print_stages(summarize([measure(args.model, args.length) for _ in range(args.runs)]))


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_TARGET, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--length", type=positive_int, default=8, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument(
        "--runs", type=positive_int, default=1, metavar="N", help="print the smallest times (default: 1)"
    )
    parser.add_argument("--stages", action="store_true", help="run the stages in this process and print them as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
