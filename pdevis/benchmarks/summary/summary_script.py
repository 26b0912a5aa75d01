"""The common part of the summary scripts: flags, checks of the output files, and the steps from input to output.

parser = summary_parser(__doc__)
run_main(run_summary, parser.parse_args(), "mmlu")
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pdevis.benchmarks.bootstrap import LEVEL
from pdevis.cli import Parser
from pdevis.util.files import encode_json, prepare_output_file, write_atomic

EPILOG = f"""\
--input may also name OUTPUT.partial.jsonl, the journal of a run that has not finished.

Rates are ratios of sums; every value has a {100 * LEVEL:.0f} % bootstrap interval over questions. Methods that were not
run are left out, questions that failed are counted and not averaged in. No model is loaded."""


def summary_parser(description: str | None, *, several_inputs: bool = False) -> Parser:
    """Return a parser of --input, --output and --plot.

    Args:
        description: the script's docstring.
        several_inputs: --input takes one or more files and gives a list.
    """
    parser = Parser(description=description, epilog=EPILOG)
    inputs = {"nargs": "+"} if several_inputs else {}
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="results of the evaluate script", **inputs
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the summary goes (JSON)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the summary into a PNG file")
    return parser


def check_targets(sources: Iterable[Path], targets: dict[str, Path | None]) -> None:
    """Check before any work is done that all output files can be written; create their folders.

    Args:
        sources: the inputs, which must not be replaced.
        targets: the file that each flag names; None: the flag was not given.

    Raises:
        ValueError: for a path that is a folder, one of the inputs, or the same file twice; names flag and path.
        OSError: for a folder that cannot be created or written to.
    """
    sources = list(sources)
    files = {flag: path for flag, path in targets.items() if path is not None}
    flags: dict[Path, str] = {}
    for flag, path in files.items():
        if flag == "--plot" and path.suffix.lower() != ".png":
            raise ValueError(f"{flag} {path}: must end in .png")
        other = flags.setdefault(path.resolve(), flag)
        if other != flag:
            raise ValueError(f"{flag} {path}: is also the file of {other}; must be another file")
    for flag, path in files.items():
        prepare_output_file(path, flag=flag, inputs=sources)


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write a summary as a JSON file, whole or not at all."""
    write_atomic(path, encode_json(summary, indent=1, allow_nan=False) + b"\n")


def run_summary(args: Namespace, benchmark: str) -> None:
    """Read results, then write, print and plot their summary. Raises ValueError for a user's mistake."""
    from pdevis.benchmarks.summary.load_results import load_run
    from pdevis.benchmarks.summary.spec_bench_export import baseline_path, write_answers
    from pdevis.benchmarks.summary.summarize import summarize
    from pdevis.benchmarks.summary.summary_table import show_summary
    from pdevis.benchmarks.tasks import get_task
    from pdevis.util.console import make_console

    run = load_run(args.input, benchmark)
    answers = getattr(args, "spec_bench_answers", None)
    targets = {"--output": args.output, "--plot": args.plot, "--spec-bench-answers": answers}
    check_targets([args.input], targets | {"--spec-bench-answers (baseline)": answers and baseline_path(answers)})
    summary = summarize(run, get_task(benchmark))
    if answers is not None:
        write_answers(run, answers)
    write_summary(summary, args.output)
    if args.plot is not None:
        from pdevis.benchmarks.summary.summary_plot import draw_summary

        draw_summary(summary, args.plot)
    show_summary(make_console(), summary)  # last: a reader of stdout that ends early costs no file


def run_grid_summary(args: Namespace) -> None:
    """Read the grid of an ablation, then write, print and plot its summary. Raises ValueError for a user's mistake."""
    from pdevis.benchmarks.ablation.ablation_summary import load_grid, show_grid, summarize_grid
    from pdevis.util.console import make_console

    grid = load_grid(args.input)
    check_targets([args.input], {"--output": args.output, "--plot": args.plot})
    summary = summarize_grid(grid)
    write_summary(summary, args.output)
    if args.plot is not None:
        from pdevis.benchmarks.ablation.ablation_plot import draw_grid

        draw_grid(summary, args.plot)
    show_grid(make_console(), summary)
