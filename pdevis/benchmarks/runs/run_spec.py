"""From the flags of an evaluate script to a frozen `RunSpec`: everything that a run needs, checked before models load.

args = evaluation_parser("mmlu", __doc__, root).parse_args()
with process_group(args) as env, locked_output(args, env=env) as output:
    fresh_seed = env.shared_seed()
    spec = env.run_on_all(lambda: make_run_spec(args, env=env, output=output, fresh_seed=fresh_seed))
    pair = spec.pair.load()
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.conversation import GenerationSettings
from pdevis.benchmarks.runs.distributed import DistEnv
from pdevis.benchmarks.runs.journal import Output, find_journals, read_journals
from pdevis.benchmarks.runs.result_files import LINES, METHODS, Meta
from pdevis.benchmarks.tasks import BENCHMARKS, Item, Task, get_task
from pdevis.cli import (
    Parser,
    add_draft_flags,
    add_model_flags,
    draft_config,
    pair_arguments,
)
from pdevis.config import MODEL, MODEL_FIELDS, PROCESSING, DecodeConfig, DraftConfig
from pdevis.controls.decode_flags import add_decode_flags, decode_config, given_fields
from pdevis.controls.model_settings import fill_in
from pdevis.util.argtypes import choice, comma_list, one_line, positive_int
from pdevis.util.files import make_parent_folder, prepare_output_file
from pdevis.util.provenance import sha256, versions

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

# flags of the same meaning have different names in the scripts
COMMON_FLAGS = {
    "dataset": "--dataset",
    "output": "--output",
    "items": "--k",
    "length": "--gen_len",
    "target_device": "--target_device",
    "draft_device": "--draft_device",
}
SPECBENCH_FLAGS = {
    "dataset": "--specbench",
    "output": "--out",
    "items": "--max_examples",
    "length": "--max_gen_len",
    "target_device": "--target_device",
    "draft_device": "--drafter_device",
}
RESULTS = Path("results")  # default folder for output, created if it does not exist

EPILOG = """Each item is answered by every one of --methods with the same prompt, limit and settings, after a warm-up. A
finished item is in OUTPUT.partial.jsonl at once; OUTPUT itself (one entry per item) and OUTPUT.meta.json (settings,
versions, devices, times) are written at the end. In greedy runs (--temperature 0, the default) the speculative token
ids are compared with the target's. Speed and quality of each method are printed at the end. Existing files are replaced
only with --overwrite.

    %(prog)s … --resume                               # continue after Ctrl-C, a crash or a reboot
    accelerate launch --num_processes 4 %(prog)s …    # divided over four GPUs

accelerate: without several GPUs it also needs --multi_gpu to start several processes (on the CPU too). Without a device
flag each process takes another GPU, otherwise one of a comma list such as --target_device cuda:0,cuda:1.

Exit code: 0, or 1 if an item failed (the others are kept), 2 for a mistake in the flags, 130 after Ctrl-C."""


def evaluation_parser(benchmark: str | None, description: str | None, root: Path) -> Parser:
    """Parser of one benchmark's evaluate script; None: of a script that has the benchmark as a flag.

    Args:
        benchmark: one of `BENCHMARKS`.
        description: the script's docstring.
        root: the project's folder, with appInference.py and Data/samples.
    """
    names = SPECBENCH_FLAGS if benchmark == "specbench" else COMMON_FLAGS
    parser = Parser(description=description, epilog=EPILOG if benchmark else None)
    parser.set_defaults(root=root, flags=names)
    group = parser.add_argument_group("evaluation")
    if benchmark is None:
        kind = choice(*BENCHMARKS)
        group.add_argument("--benchmark", type=kind, default="mmlu", help=f"{', '.join(BENCHMARKS)} (default: mmlu)")
        parser.set_defaults(methods=("target", "speculative"))
    else:
        parser.set_defaults(benchmark=benchmark)
        methods = comma_list(choice(*METHODS))
        text = f"decoders that answer, a comma list (default: {','.join(METHODS)})"
        group.add_argument("--methods", type=methods, default=METHODS, metavar="LIST", help=text)
    _add_file_flags(group, names, root)
    text = "model whose tokenizer and chat template encode the prompts (default: the target's)"
    group.add_argument("--processor", metavar="MODEL", help=text)
    text = "use the prompts unchanged, without the chat template"
    group.add_argument("--no-chat", dest="chat", action="store_false", help=text)
    add_model_flags(parser, names["target_device"], names["draft_device"])
    add_draft_flags(parser)
    add_decode_flags(parser, names["length"], get_task(benchmark).gen_len if benchmark else Task.gen_len)
    return parser


def _add_file_flags(group: Any, names: dict[str, str], root: Path) -> None:
    """Add the flags for the dataset, the output, existing files and the code that loads the pair."""
    text = "JSON array or JSON lines (default: the benchmark's file in Data/samples)"
    group.add_argument(names["dataset"], dest="dataset", type=Path, metavar="FILE", help=text)
    group.add_argument(names["items"], dest="k", type=positive_int, metavar="N", help="only the first N items")
    text = f"result file (default: in {RESULTS}/, named after the benchmark)"
    group.add_argument(names["output"], dest="output", type=Path, metavar="FILE", help=text)
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue a run that was stopped, if there is one")
    existing.add_argument("--overwrite", action="store_true", help="start over and replace existing files")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    group.add_argument(
        "--code_path",
        type=Path,
        default=root / "appInference.py",
        metavar="FILE",
        help="Python file whose load_pair is used (default: the project's appInference.py)",
    )


@dataclass(frozen=True)
class PairLoader:
    """Loader of this process's pair.

    Args:
        function: `load_pair` of the file that --code_path names.
        arguments: its keyword arguments.
        processor: model whose tokenizer replaces the target's.
        progress: report progress on stderr.
    """

    function: Callable[..., SpeculativePair]
    arguments: Mapping[str, Any]
    processor: str | None = None
    progress: bool = True

    def load(self) -> SpeculativePair:
        """Load the pair. Raises ValueError or OSError if a model or the tokenizer cannot be used."""
        if not self.progress:
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
        pair = self.function(**self.arguments, on_progress=self._show)
        if self.processor:
            from pdevis.loading.checkpoint import check_same_tokenizer, find_source, read_tokenizer

            tokenizer = read_tokenizer(find_source(self.processor))
            check_same_tokenizer(pair.tokenizer, tokenizer)
            pair.tokenizer = tokenizer
        return pair

    def _show(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunSpec:
    """Everything that a run needs.

    Args:
        task: the benchmark.
        items: its questions.
        methods: decoders that answer, in the order of `METHODS`.
        draft, decode: settings; the seed of `decode` is the one that the seeds of single answers are derived from.
        given: `MODEL_FIELDS` that the flags give; the pair's own values replace the others (--sampling model).
        chat: put the prompts into the chat template, if the tokenizer has one.
        pair: how to load the models.
        output: the result file.
        settings: everything that influences results; it must be the same when a run is resumed.
        origin: further facts for the meta file, which may differ when a run is resumed.
        progress: show a progress bar.
    """

    task: Task
    items: tuple[Item, ...]
    methods: tuple[str, ...]
    draft: DraftConfig
    decode: DecodeConfig
    given: frozenset[str]
    chat: bool
    pair: PairLoader
    output: Output
    settings: Mapping[str, Any]
    origin: Mapping[str, Any]
    progress: bool

    def generation_settings(self, pair: SpeculativePair | None) -> GenerationSettings:
        """Settings shared by all items; prompts go through the chat template only if the tokenizer has one."""
        has_template = pair is not None and bool(pair.tokenizer.chat_template)
        decode = fill_in(self.decode, self.given, pair.defaults) if pair is not None else self.decode
        return GenerationSettings(self.methods, decode, chat=self.chat and has_template)

    def sampling(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """Facts for the meta file: the `MODEL_FIELDS` in use, if the model's own values were asked for.

        Args:
            pair: labels of the pair, as `SpeculativePair.describe` returns them.
        """
        if "sampling" not in pair:
            return {}
        values = {name: getattr(self.decode, name) for name in MODEL_FIELDS}
        own = {name: value for name, value in pair["sampling"].items() if name not in self.given}
        return {"sampling": values | own}

    def header(self, settings: Mapping[str, Any]) -> Meta:
        """Header of the run's files, with these settings."""
        return {"benchmark": self.task.name, "settings": dict(settings), "versions": versions()}


@contextmanager
def locked_output(args: argparse.Namespace, *, env: DistEnv, name: str | None = None) -> Iterator[Output]:
    """Find the output file of the flags and check it; lock it, for all processes of the run, until the block ends.

    Args:
        name: default name of the output file; None: the benchmark's.

    Raises:
        ValueError, OSError: a mistake, in one line; among them that another run is writing the file.
    """

    def find() -> Output:
        dataset = _find_dataset(args)
        path = args.output or _default_output(name or args.benchmark, args.benchmark)
        prepare_output_file(path, flag=args.flags["output"], inputs=[dataset, args.code_path])
        return Output(path, args.flags["output"], args.resume, args.overwrite)

    output = env.run_on_all(find)
    lock = env.run_on_all(lambda: output.lock() if env.is_main else None)
    try:
        yield output
    finally:
        if lock:
            lock.release()


def make_run_spec(args: argparse.Namespace, *, env: DistEnv, output: Output, fresh_seed: int) -> RunSpec:
    """Turn the flags of `evaluation_parser` into a `RunSpec`, and check it.

    Args:
        output: the result file, locked.
        fresh_seed: seed of a sampled run without --seed that does not continue another one.

    Raises:
        ValueError, OSError: a mistake, in one line.
    """
    task = get_task(args.benchmark)
    dataset = _find_dataset(args)
    items = task.load(dataset, args.k)
    decode, given = decode_config(args), given_fields(args)
    may_sample = not decode.greedy or (args.sampling == MODEL and "temperature" not in given)
    if may_sample and decode.seed is None:
        recorded = _recorded_seed(output) if args.resume else None
        decode = decode_config(args, seed=fresh_seed if recorded is None else recorded)
    function = load_code(args.code_path)
    return RunSpec(
        task=task,
        items=tuple(items),
        methods=tuple(method for method in METHODS if method in args.methods),
        draft=draft_config(args),
        decode=decode,
        given=given,
        chat=args.chat,
        pair=_pair_loader(args, env, function),
        output=output,
        settings=_settings(args, dataset, decode),
        origin={"dataset": str(dataset), "code_path": str(args.code_path), "command": sys.argv},
        progress=args.progress,
    )


def _find_dataset(args: argparse.Namespace) -> Path:
    """The file that the flags name, or the sample. Raises ValueError if it does not exist."""
    dataset = args.dataset or sample_file(args.root, args.benchmark)
    if not dataset.is_file():
        state = "is a folder" if dataset.is_dir() else "does not exist"
        raise ValueError(f"{args.flags['dataset']} {dataset}: {state}; Data/README.md says how to get the datasets")
    return dataset


def sample_file(root: Path, benchmark: str) -> Path:
    """The small dataset that comes with the project."""
    return root / "Data" / "samples" / f"{benchmark}.{'jsonl' if benchmark in LINES else 'json'}"


def _default_output(name: str, benchmark: str) -> Path:
    path = RESULTS / f"{name}.{'jsonl' if benchmark in LINES and name == benchmark else 'json'}"
    make_parent_folder(path)
    return path


def _settings(args: argparse.Namespace, dataset: Path, decode: DecodeConfig) -> dict[str, Any]:
    """Everything that influences results; the numbers of the devices do not."""
    names = ("target_model", "drafter_model", "target_precision", "draft_precision", "processor", "chat", "k")
    draft = asdict(draft_config(args))
    return {
        "dataset_sha256": sha256(dataset),
        "code_sha256": sha256(args.code_path),
        **{name: getattr(args, name) for name in names},
        **{name: getattr(args, name) for name in ("thinking", "sampling") if getattr(args, name)},
        "draft_mode": draft.pop("mode"),
        **draft,
        **{name: getattr(decode, name) for name in ("gamma", "max_new_tokens", "seed")},
        **_processing(args, decode),
    }


def _processing(args: argparse.Namespace, decode: DecodeConfig) -> dict[str, Any]:
    """Settings of logits and stop strings that the flags decide; with --sampling model the pair decides the others."""
    default, asks_model = DecodeConfig(), args.sampling == MODEL
    given = given_fields(args) if asks_model else ()
    left_to_model = [name for name in MODEL_FIELDS if asks_model and name not in given]
    values = {name: getattr(decode, name) for name in dict.fromkeys((*MODEL_FIELDS, *PROCESSING))}
    recorded = {"temperature", "top_k", "top_p", *given}
    return {
        name: value
        for name, value in values.items()
        if name not in left_to_model and (name in recorded or value != getattr(default, name))
    }


def _recorded_seed(output: Output) -> int | None:
    """The seed that an interrupted run used."""
    contents = read_journals(find_journals(output.path))
    return (contents[0].header or {}).get("settings", {}).get("seed") if contents else None


def load_code(path: Path) -> Callable[..., SpeculativePair]:
    """The function `load_pair` of a Python file. Raises ValueError if the file has none, or cannot be run."""
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


def _pair_loader(args: argparse.Namespace, env: DistEnv, function: Callable[..., SpeculativePair]) -> PairLoader:
    """Loader of this process's pair, on this process's devices."""
    devices = {name: env.device(getattr(args, name), "given") for name in ("target_device", "draft_device")}
    devices["device"] = env.device(args.device, args.target_device or args.draft_device)
    arguments = pair_arguments(args) | devices
    return PairLoader(function, arguments, args.processor, progress=args.progress and env.is_main)


def join_as_worker(args: argparse.Namespace) -> int:
    """Serve the first rank of torchrun until it has finished (see `cli.is_main_rank`); returns the exit code."""
    loader = _pair_loader(args, DistEnv(), load_code(args.code_path))
    PairLoader(loader.function, loader.arguments, loader.processor, progress=False).load()
    return 0
