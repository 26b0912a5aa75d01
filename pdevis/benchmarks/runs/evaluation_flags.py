"""The flags that all evaluate scripts share, named as each of them promises.

parser = evaluation_parser("mmlu", __doc__, root)
"""

from __future__ import annotations

from pathlib import Path

from pdevis.benchmarks.runs.result_files import LINES, METHODS
from pdevis.benchmarks.tasks import BENCHMARKS
from pdevis.cli import Parser, add_decode_flags, add_draft_flags, add_model_flags
from pdevis.util.argtypes import choice, comma_list, positive_int

# The names that the scripts promise for flags that mean the same.
USUAL = {
    "dataset": "--dataset",
    "output": "--output",
    "items": "--k",
    "length": "--gen_len",
    "target_device": "--target_device",
    "draft_device": "--draft_device",
}
SPECBENCH = {
    "dataset": "--specbench",
    "output": "--out",
    "items": "--max_examples",
    "length": "--max_gen_len",
    "target_device": "--target_device",
    "draft_device": "--drafter_device",
}
GEN_LEN = {"wmt": 128, "mmlu": 16, "mgsm": 256, "math": 512, "ifeval": 512, "specbench": 256}
RESULTS = Path("results")  # the default folder for output, made where it is missing


def sample_file(root: Path, benchmark: str) -> Path:
    """The small dataset that comes with the project."""
    return root / "Data" / "samples" / f"{benchmark}.{'jsonl' if benchmark in LINES else 'json'}"


def evaluation_parser(benchmark: str | None, description: str, root: Path) -> Parser:
    """The flags of one benchmark's evaluate script; None: of one that takes the benchmark as a flag.

    Args:
        benchmark: one of `BENCHMARKS`.
        description: the script's docstring.
        root: the project's folder, with appInference.py and Data/samples.
    """
    names = SPECBENCH if benchmark == "specbench" else USUAL
    parser = Parser(description=description)
    parser.set_defaults(root=root, flags=names)
    group = parser.add_argument_group("evaluation")
    if benchmark is None:
        kind = choice(*BENCHMARKS)
        group.add_argument("--benchmark", type=kind, default="mmlu", help=f"{', '.join(BENCHMARKS)} (default: mmlu)")
    else:
        parser.set_defaults(benchmark=benchmark)
        group.add_argument(
            "--methods",
            type=comma_list(choice(*METHODS)),
            default=METHODS,
            metavar="LIST",
            help=f"which decoders answer, a comma list (default: {','.join(METHODS)})",
        )
    group.add_argument(
        names["dataset"],
        dest="dataset",
        type=Path,
        metavar="FILE",
        help="JSON array or JSON lines (default: the benchmark's file in Data/samples)",
    )
    group.add_argument(names["items"], dest="k", type=positive_int, metavar="N", help="only the first N items")
    group.add_argument(
        names["output"],
        dest="output",
        type=Path,
        metavar="FILE",
        help=f"where the results go (default: in {RESULTS}/, named after the benchmark)",
    )
    there = group.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="go on with a run that was stopped, if there is one")
    there.add_argument("--overwrite", action="store_true", help="start over, whatever is there")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    group.add_argument(
        "--code_path",
        type=Path,
        default=root / "appInference.py",
        metavar="FILE",
        help="the Python file whose load_pair is used (default: the project's appInference.py)",
    )
    group.add_argument(
        "--processor",
        metavar="MODEL",
        help="whose tokenizer encodes the prompts, with its chat template (default: the target's)",
    )
    group.add_argument(
        "--no-chat", dest="chat", action="store_false", help="no chat template: the prompts as they stand"
    )
    add_model_flags(parser, names["target_device"], names["draft_device"])
    add_draft_flags(parser)
    add_decode_flags(parser, names["length"], GEN_LEN.get(benchmark or "", 128))
    return parser
