"""What the summary scripts share: flags, checks of paths before any work, and the way from input to output."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pdevis.cli import Parser
from pdevis.util.files import prepare_output_file, write_atomic


def summary_parser(description: str | None, what: str = "what the evaluate script wrote") -> Parser:
    """The flags --input, --output and --plot."""
    parser = Parser(description=description)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help=f"results: {what}")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the summary goes (JSON)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures into a PNG file")
    return parser


def check_targets(source: Path, targets: dict[str, Path | None]) -> None:
    """Refuse files that cannot be written, before any work is done.

    Args:
        source: the input.
        targets: per flag the file that it names; None: not asked for.

    Raises:
        ValueError: for a folder that does not exist, a path that is a folder, the input itself, or the same file
            twice; names flag and path. OSError: for a folder that cannot be written to.
    """
    seen: dict[Path, str] = {}
    for flag, path in targets.items():
        if path is None:
            continue
        if flag == "--plot" and path.suffix.lower() != ".png":
            raise ValueError(f"{flag} {path}: must end in .png")
        prepare_output_file(path, flag=flag, inputs=[source])
        other = seen.setdefault(path.resolve(), flag)
        if other != flag:
            raise ValueError(f"{flag} {path}: is also the file of {other}; must be a file of its own")


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """The summary as a JSON file, whole or not at all."""
    text = json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(path, text.encode("utf-8", "backslashreplace") + b"\n")


def run_summary(args: Namespace, benchmark: str) -> None:
    """Read, summarise, write, print. Raises ValueError on user mistakes."""
    from pdevis.benchmarks.summary.load_results import load_run
    from pdevis.benchmarks.summary.spec_bench_export import baseline_path, write_answers
    from pdevis.benchmarks.summary.summarize import summarize
    from pdevis.benchmarks.summary.summary_table import show_summary
    from pdevis.benchmarks.tasks import get_task
    from pdevis.util.console import make_console

    answers = getattr(args, "spec_bench_answers", None)
    targets = {"--output": args.output, "--plot": args.plot, "--spec-bench-answers": answers}
    check_targets(args.input, targets | {"--spec-bench-answers (baseline)": answers and baseline_path(answers)})
    run = load_run(args.input, benchmark)
    summary = summarize(run, get_task(benchmark))
    if answers is not None:
        write_answers(run, answers)
    write_summary(summary, args.output)
    show_summary(make_console(), summary)
    if args.plot is not None:
        from pdevis.benchmarks.summary.summary_plot import draw_summary

        draw_summary(summary, args.plot)


def run_grid_summary(args: Namespace) -> None:
    """The same for the grid of an ablation. Raises ValueError on user mistakes."""
    from pdevis.benchmarks.ablation.ablation_plot import draw_grid
    from pdevis.benchmarks.ablation.ablation_summary import load_grid, show_grid, summarize_grid
    from pdevis.util.console import make_console

    check_targets(args.input, {"--output": args.output, "--plot": args.plot})
    summary = summarize_grid(load_grid(args.input))
    write_summary(summary, args.output)
    show_grid(make_console(), summary)
    if args.plot is not None:
        draw_grid(summary, args.plot)
