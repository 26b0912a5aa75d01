"""From the raw measurements of a speed comparison to its summary, and from files to both. Loads no model.

python summary/speed/summary_speed.py --input speed.json --output speed_summary.json --plot speed.png
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdevis.benchmarks.bootstrap import LEVEL, RESAMPLES, SEED
from pdevis.benchmarks.runs.journal import SUFFIX, read_journals, read_result
from pdevis.benchmarks.speed.draft_step import summarize_steps
from pdevis.benchmarks.speed.memory import summarize_memory
from pdevis.benchmarks.speed.speed_rows import by_category, equality, make_rows

KIND = "speed"
Entry = dict[str, Any]


def summarize(entries: Sequence[Entry], meta: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """The summary, ready for JSON.

    Args:
        entries: finished units of any "kind": prompt, draft-step, memory.
        meta: the run's header or meta data: settings, pair, and (of a finished run) times and versions.
        partial: whether the run has not been finished.

    Raises:
        ValueError: where no prompt is finished.
    """
    prompts = [entry for entry in entries if entry["kind"] == "prompt"]
    if not prompts:
        raise ValueError("no prompt is finished: there is nothing to summarise")
    single = {entry["kind"]: entry for entry in entries if entry["kind"] != "prompt"}
    rows, left_out = make_rows(prompts)
    settings = meta.get("settings") or {}
    return {
        "benchmark": KIND,
        "partial": partial,
        "pair": meta.get("pair"),
        "settings": settings,
        "prompts": len(prompts),
        "intervals": {
            "kind": "percentile bootstrap over prompts",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "rows": rows,
        "equality": equality(rows),
        "left_out": {**(settings.get("left_out") or {}), **left_out},
        "draft_step": summarize_steps(single.get("draft-step"), rows),
        "memory": summarize_memory(single.get("memory")),
        "categories": by_category(prompts, rows),
    }


def load_speed(path: Path) -> dict[str, Any]:
    """The summary of a result file of evaluate_speed.py, or of the journal of its unfinished run.

    Raises:
        ValueError: for a file that is missing, broken, or of something else; on one line.
    """
    try:
        if path.name.endswith(SUFFIX):
            found = read_journals([path])
            header = (found[0].header or {}) if found else {}
            entries = [entry for _, entry in sorted(found[0].entries.items())] if found else []
            partial = True
        else:
            header = _read(path)
            entries, partial = header.pop("entries", None), False
        if header.get("benchmark") != KIND or not isinstance(entries, list):
            raise ValueError("must be a result of evaluate_speed.py")
        return {"input": str(path)} | summarize(entries, header, partial)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: an entry is incomplete: {type(error).__name__} {error}") from None


def run_speed_summary(args: Namespace) -> None:
    """Read, summarise, write, print, draw. Raises ValueError on user mistakes."""
    from pdevis.benchmarks.speed.speed_table import show_speed
    from pdevis.benchmarks.summary.summary_script import check_targets, write_summary
    from pdevis.util.console import make_console

    for path in args.input:
        check_targets(path, {"--output": args.output, "--plot": args.plot})
    runs = [load_speed(path) for path in args.input]
    write_summary({"benchmark": KIND, "runs": runs}, args.output)
    for run in runs:
        show_speed(make_console(), run)
    if args.plot is not None:
        from pdevis.benchmarks.speed.speed_plot import plot_speed
        from pdevis.util.plotting import save

        save(plot_speed(runs), args.plot)


def _read(path: Path) -> dict[str, Any]:
    found = read_result(path)
    if not isinstance(found, dict):
        raise ValueError("must be a result of evaluate_speed.py: one JSON object")
    return found
