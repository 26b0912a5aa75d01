"""The run of evaluate_gpu.py: one part after another, the most important first, and a file that is saved after each."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pdevis.benchmarks.gpu.device_times import copy_bandwidth
from pdevis.benchmarks.gpu.gpu_report import BENCHMARK, is_measured, show_gpu
from pdevis.benchmarks.gpu.model_costs import drafter_costs, free_memory, target_costs, transformers_costs
from pdevis.benchmarks.gpu.pair_costs import embedded_on_both, exactness, pair_speeds
from pdevis.devices import find_device_slots
from pdevis.util.console import StderrLog, make_console
from pdevis.util.files import encode_json, locked_new_file, parse_json, read_text, write_atomic
from pdevis.util.provenance import git_state, now, versions
from pdevis.util.validation import ModelLoadError, first_line

DRAFTERS = ("qwen-0.6b", "llama-1b", "qwen-1.7b", "llama-3b")
TARGETS = ("llama-8b", "qwen-8b")
PAIRS = (("llama-8b", "llama-1b"), ("qwen-8b", "qwen-0.6b"))
WITH_TRANSFORMERS = ("qwen-0.6b", "llama-1b")  # compiling transformers' models takes a minute each, so they come last
ACCEPTANCES, GAMMAS = (0.7, 0.8), (2, 4, 6, 8)
TEST_FILE = Path("tests") / "test_cuda.py"
TEST_SECONDS = 120

Part = Callable[[], dict[str, Any]]


class GpuRun:
    """The parts of one run.

    Args:
        device: to measure.
        quick: fewer repeats and tokens.
        root: of the repository, for the tests.
    """

    def __init__(self, device: torch.device, *, quick: bool, root: Path) -> None:
        self.device, self.quick, self.root = device, quick, root
        self.repeats = 3 if quick else 15
        self.length = 8 if quick else 64
        self._bandwidth: float | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a copy, measured once."""
        if self._bandwidth is None:
            self._bandwidth = copy_bandwidth(self.device)
        return self._bandwidth

    def parts(self) -> dict[str, Part]:
        """Return all parts in the order in which they run."""
        parts: dict[str, Part] = {"bandwidth": lambda: {"bytes_per_second": self.bandwidth}}
        parts["exactness"] = lambda: exactness(
            "llama-1b", self.device, prompts=4 if self.quick else 20, length=self.length
        )
        for key in DRAFTERS:
            parts[f"drafter {key}"] = self._drafter(key)
        for key in TARGETS:
            parts[f"target {key}"] = self._target(key)
        for target, drafter in PAIRS:
            parts[f"pair {target} {drafter}"] = self._pair(target, drafter)
        if self.device.type == "cuda" and torch.cuda.device_count() > 1:
            for devices in ("cuda:1", "cuda:0,cuda:1"):
                name = f"pair {PAIRS[0][0]} {PAIRS[0][1]}, drafter on {devices}"
                parts[name] = self._pair(*PAIRS[0], draft_device=devices)
        parts["embedded"] = lambda: embedded_on_both(self.device, prompts=2 if self.quick else 6, length=self.length)
        parts["tests"] = lambda: run_tests(self.root)
        for key in WITH_TRANSFORMERS:
            parts[f"transformers {key}"] = self._transformers(key)
        return parts

    def _drafter(self, key: str) -> Part:
        return lambda: drafter_costs(key, self.device, bandwidth=self.bandwidth, repeats=self.repeats)

    def _transformers(self, key: str) -> Part:
        return lambda: transformers_costs(key, self.device, bandwidth=self.bandwidth)

    def _target(self, key: str) -> Part:
        return lambda: target_costs(
            key,
            self.device,
            bandwidth=self.bandwidth,
            repeats=self.repeats,
            length=self.length,
            peer=key == TARGETS[0],
        )

    def _pair(self, target: str, drafter: str, *, draft_device: str | None = None) -> Part:
        return lambda: pair_speeds(
            target,
            drafter,
            self.device,
            acceptances=ACCEPTANCES,
            gammas=GAMMAS[:1] if self.quick else GAMMAS,
            length=self.length,
            draft_device=draft_device,
        )


def run_tests(root: Path) -> dict[str, Any]:
    """Run the tests that need a GPU; returns {"exit_code", "last_line"}."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TEST_FILE)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"left_out": f"the tests take more than {TEST_SECONDS} s"}
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    return {"exit_code": done.returncode, "last_line": lines[-1]}


def run_gpu(args: argparse.Namespace, root: Path) -> int:
    """Measure what the flags ask for, save after each part, and print; returns the exit code.

    Raises:
        ValueError, OSError: a user's mistake or a failing disk, in one line. KeyboardInterrupt: finished parts are
            kept.
    """
    device = find_device_slots(args.device, "device")[0].device
    run, log = GpuRun(device, quick=args.quick, root=root), StderrLog()
    chosen = choose_parts(run.parts(), args.parts)
    with locked_new_file(args.output, args.overwrite or args.resume):
        result = _open_result(args, device)
        log(f"{result['device']}: {len(chosen)} parts, at most {args.budget:g} s")
        try:
            _measure_parts(chosen, result, args, log)
        except KeyboardInterrupt:
            log(f"stopped: finished parts are in {args.output}; --resume measures the others")
            raise
    show_gpu(make_console(), result)
    return int(any("error" in part for part in result["parts"].values()))


def _measure_parts(chosen: dict[str, Part], result: dict[str, Any], args: argparse.Namespace, log: StderrLog) -> None:
    """Measure what the result lacks, and save it after each part."""
    start = time.perf_counter()
    _save(args.output, result)
    for name, part in chosen.items():
        if name in result["parts"]:
            continue
        if (spent := time.perf_counter() - start) > args.budget:
            result["parts"][name] = {"left_out": f"--budget {args.budget:g}: {spent:.0f} s are spent"}
        else:
            log(name)
            result["parts"][name] = _measured(part)
            free_memory()
        _save(args.output, result)


def choose_parts(parts: dict[str, Part], wanted: tuple[str, ...] | None) -> dict[str, Part]:
    """Return the parts whose names begin with one of the wanted words. Raises ValueError for a word without a part."""
    for word in wanted or ():
        if not any(name.startswith(word) for name in parts):
            raise ValueError(f"--parts: {word!r} must be the beginning of one of {', '.join(parts)}")
    return {name: part for name, part in parts.items() if not wanted or name.startswith(tuple(wanted))}


def _measured(part: Part) -> dict[str, Any]:
    """Measure a part; an error of it is kept in place of its numbers, and the other parts go on."""
    start = time.perf_counter()
    try:
        found = part()
    except ModelLoadError as error:  # the embedded model, without a network
        found = {"left_out": first_line(error)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {first_line(error)}"}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def _open_result(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the result so far: of the file to continue, or a new one. Raises ValueError if that is of another run."""
    path: Path = args.output
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if path.exists() and args.resume:
        result = parse_json(read_text(path))
        if result.get("benchmark") != BENCHMARK or (result["device"], result["quick"]) != (name, args.quick):
            raise ValueError(f"--resume: {path} is not a run of this script on {name} with the same --quick")
        result["parts"] = {name: part for name, part in result["parts"].items() if is_measured(part)}
        return result
    cuda = {"cuda": torch.version.cuda, "count": torch.cuda.device_count()} if device.type == "cuda" else {}
    return {
        "benchmark": BENCHMARK,
        "device": name,
        "quick": args.quick,
        "date": now(),
        "versions": versions() | cuda,
        "git": git_state(),
        "parts": {},
    }


def _save(path: Path, result: dict[str, Any]) -> None:
    write_atomic(path, encode_json(result, indent=1))
