"""From flags to all that a run needs: items, settings, output, and how to load the pair. Mistakes show up here.

world = join_world(args)
inputs = world.agree(lambda: read_inputs(args, world, world.seed()))
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.distributed import World
from pdevis.benchmarks.runs.evaluation_flags import RESULTS, sample_file
from pdevis.benchmarks.runs.journal import find_journals, read_journals
from pdevis.benchmarks.runs.output import Output
from pdevis.benchmarks.runs.provenance import sha256, versions
from pdevis.benchmarks.runs.result_files import LINES
from pdevis.benchmarks.tasks import Task, get_task
from pdevis.cli import decode_config, draft_config, pair_arguments
from pdevis.config import DecodeConfig
from pdevis.util.argtypes import one_line
from pdevis.util.files import make_parent_folder, prepare_output_file

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


@dataclass(frozen=True)
class Inputs:
    """What a run works with, all of it checked before any model is loaded."""

    task: Task
    dataset: Path
    items: list[dict[str, Any]]
    decode: DecodeConfig
    output: Output
    header: dict[str, Any]
    about: dict[str, Any]
    load: Callable[[], SpeculativePair]


def read_inputs(args: argparse.Namespace, world: World, seed: int, name: str | None = None) -> Inputs:
    """Everything that the flags ask for, but the models.

    Args:
        args: of `evaluation_parser`.
        seed: for sampled runs without --seed.
        name: the output file's default name; None: the benchmark's.

    Raises:
        ValueError, OSError: a mistake, in one line.
    """
    task = get_task(args.benchmark)
    dataset = args.dataset or sample_file(args.root, args.benchmark)
    if not dataset.is_file():
        what = "is a folder" if dataset.is_dir() else "does not exist"
        raise ValueError(f"{args.flags['dataset']} {dataset}: {what}; Data/README.md tells how to get the datasets")
    items = task.load(dataset, args.k)
    output = Output(args.output or _default_output(name or args.benchmark, args.benchmark), args.flags["output"])
    prepare_output_file(output.path, flag=output.flag, inputs=[dataset, args.code_path])
    if args.temperature > 0 and args.seed is None:
        args.seed = _seed_of(output) if args.resume else None
        args.seed = seed if args.seed is None else args.seed
    code = load_code(args.code_path)
    header = {"benchmark": args.benchmark, "settings": _settings(args, dataset), "versions": versions()}
    about = {"dataset": str(dataset), "code_path": str(args.code_path), "command": sys.argv}
    return Inputs(task, dataset, items, decode_config(args), output, header, about, pair_loader(args, world, code))


def _default_output(name: str, benchmark: str) -> Path:
    path = RESULTS / f"{name}.{'jsonl' if benchmark in LINES and name == benchmark else 'json'}"
    make_parent_folder(path)
    return path


def _settings(args: argparse.Namespace, dataset: Path) -> dict[str, Any]:
    """All that has an influence on results; the devices' numbers have none."""
    names = ("target_model", "drafter_model", "target_precision", "draft_precision", "processor", "chat", "k")
    draft = asdict(draft_config(args))
    decode = asdict(decode_config(args))
    return {
        "dataset_sha256": sha256(dataset),
        "code_sha256": sha256(args.code_path),
        **{name: getattr(args, name) for name in names},
        "draft_mode": draft.pop("mode"),
        **draft,
        **{name: decode[name] for name in ("gamma", "max_new_tokens", "temperature", "top_k", "top_p", "seed")},
    }


def _seed_of(output: Output) -> int | None:
    """The seed that an interrupted run drew for itself."""
    found = read_journals(find_journals(output.path))
    return (found[0].header or {}).get("settings", {}).get("seed") if found else None


def load_code(path: Path) -> Callable[..., SpeculativePair]:
    """The function `load_pair` of a Python file. Raises ValueError where the file has none, or cannot be run."""
    if not path.is_file():
        raise ValueError(f"--code_path {path}: {'is a folder' if path.is_dir() else 'does not exist'}")
    name = f"pdevis_code_{path.stem}"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--code_path {path}: cannot be run: {type(error).__name__}: {one_line(error)}") from error
    load = getattr(module, "load_pair", None)
    if not callable(load):
        raise ValueError(f"--code_path {path}: has no function load_pair")
    return load


def pair_loader(
    args: argparse.Namespace, world: World, code: Callable[..., SpeculativePair]
) -> Callable[[], SpeculativePair]:
    """What loads this process's pair, with the tokenizer that --processor names."""

    def show(text: str) -> None:
        if args.progress and world.main:
            print(text, file=sys.stderr, flush=True)

    def load() -> SpeculativePair:
        if not (args.progress and world.main):
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
        wanted = pair_arguments(args)
        wanted["device"] = world.device(args.device, args.target_device or args.draft_device)
        for name in ("target_device", "draft_device"):
            wanted[name] = world.device(wanted[name], "given")
        pair = code(**wanted, on_progress=show)
        if args.processor:
            from pdevis.loading.checkpoint import check_same_tokenizer, find_source, read_tokenizer

            tokenizer = read_tokenizer(find_source(args.processor))
            check_same_tokenizer(pair.tokenizer, tokenizer)
            pair.tokenizer = tokenizer
        return pair

    return load


def join_as_worker(args: argparse.Namespace) -> int:
    """Help the first rank until it is done (`cli.leads`)."""
    args.progress = False
    pair_loader(args, World(), load_code(args.code_path))()
    return 0


def uses_chat(args: argparse.Namespace, pair: SpeculativePair) -> bool:
    """Whether prompts go through a chat template: where there is one, unless --no-chat."""
    return args.chat and bool(pair.tokenizer.chat_template)
