"""The run behind `evaluation/speed/evaluate_speed.py`: load, measure, print, keep."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pdevis.benchmarks.speed import PROMPTS, measure, our_method, raw, report, transformers_generate
from pdevis.cli import pair_arguments
from pdevis.models.loading import check_device, find_source, read_model
from pdevis.pair import load_pair
from pdevis.records import DraftConfig

PLAIN = "pdevis, target alone"
THEIRS = "transformers generate"


def name_of(draft: DraftConfig, mode: str, gamma: int) -> str:
    """A row's name, such as "pdevis, skip planned τ=0.9, γ=4"."""
    rule = mode if mode == "exact" else f"{mode} {draft.check} τ={draft.threshold:g} W={draft.window}"
    return f"pdevis, {rule}, γ={gamma}"


def run_speed(args: Namespace, drafts: Sequence[DraftConfig], gammas: Sequence[int]) -> int:
    """Measure and report; on CPU, returns 1 where an answer of ours differs from plain decoding, else 0.

    On a GPU kernels for one and for several tokens round differently, and near-ties may fall either way.
    """
    output = Path(args.output) if args.output else None
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"--output: {args.output!r} must be a file in a folder that exists")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    pair = load_pair(**pair_arguments(args) | {"draft": drafts[0]}, on_progress=say)
    prompts = [pair.encode(prompt) for prompt in PROMPTS[: args.prompts]]
    contestants = [our_method(pair, PLAIN, "target", drafts[0], 1)]
    if not args.no_transformers:
        say("loading the target again for transformers")
        device = check_device(args.target_device or args.device)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        contestants.append(transformers_generate(read_model(find_source(args.target_model), dtype, device)))
    for draft in drafts:
        pair.configure(draft)
        names = [(name_of(draft, pair.mode, gamma), gamma) for gamma in gammas]
        contestants += [our_method(pair, name, "speculative", draft, gamma) for name, gamma in names]
    timings = measure(contestants, prompts, args.length, say)
    rows = report(timings, (PLAIN, THEIRS))
    print_rows(rows)
    if output:
        kept = {"settings": vars(args), "pair": pair.describe(), "threads": torch.get_num_threads(), "rows": rows}
        output.write_text(json.dumps(kept | {"raw": raw(timings)}, indent=1) + "\n")
    ours = [row for row in rows if row["name"] != THEIRS]
    return int(pair.target.device.type == "cpu" and any(row["same_ids"] < row["prompts"] for row in ours))


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(
        "decoder", "tok/s", "x plain", "x transformers", "α", "length", "skip", "ms/draft", "ms/verify", "same"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        ratios = [_with_spread(row["ratios"].get(name)) for name in (PLAIN, THEIRS)]
        counts = [_number(row.get(name), digits) for name, digits in _COLUMNS]
        table.add_row(
            row["name"], f"{row['tokens_per_second']:.1f}", *ratios, *counts, f"{row['same_ids']}/{row['prompts']}"
        )
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


_COLUMNS = (
    ("acceptance_rate", 2),
    ("mean_accept_length", 2),
    ("mean_skip", 1),
    ("draft_ms_per_token", 1),
    ("verify_ms_per_round", 1),
)


def _with_spread(found: tuple[float, float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
