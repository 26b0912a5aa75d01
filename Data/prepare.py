"""Builds the local benchmark files from their public datasets, at pinned revisions.

    python Data/prepare.py all
    python Data/prepare.py mmlu --k 500 --seed 1
    python Data/prepare.py wmt math --output-dir my-data --force

Items are drawn with a seed and spread evenly over languages, subjects or categories, so that the first items of a file
are already a fair sample; --k takes that many of them. A file appears whole or not at all, and none is overwritten
without --force. Where the hub cannot be reached, WMT comes from sacrebleu's copy of the same test set; datasets that
are in the hub's cache already are used with HF_HUB_OFFLINE=1. Data/README.md names sources, revisions and licences.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks import BENCHMARKS, get_task
from pdevis.benchmarks.tasks.dataset_sources import SOURCES, FetchError
from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import one_line

Item = dict[str, Any]


def spread(items: Iterable[Item], key: str | None, k: int | None, seed: int) -> list[Item]:
    """The first k items (None: all) of a shuffle in which the values of `key` take turns."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(item[key] if key else None, []).append(item)
    generator = random.Random(seed)
    placed = []
    for order, group in enumerate(groups.values()):
        generator.shuffle(group)
        placed += [(turn, order, item) for turn, item in enumerate(group)]
    return [item for _, _, item in sorted(placed, key=lambda each: each[:2])][:k]


def write(path: Path, items: list[Item], benchmark: str) -> None:
    """Write a file that the benchmark's loader accepts, in one step: nothing half-written is ever in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            else:
                file.write(json.dumps(items, ensure_ascii=False, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            get_task(benchmark).load(part)
        except ValueError as error:
            raise FetchError(f"the dataset is not as expected: {str(error).replace(part.name, path.name)}") from error
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "benchmarks",
        nargs="+",
        choices=("all", *BENCHMARKS),
        metavar="BENCHMARK",
        help=f"all, or some of {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--k", type=_at_least(1), metavar="N", help="items per file (default: all)")
    parser.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of the draw (default: %(default)s)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="where the files go (default: the folder of this script)",
    )
    parser.add_argument(
        "--revision", metavar="COMMIT", help="of the dataset, instead of the pinned one (one benchmark)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that already exist")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= {least}")
        return int(text)

    return parse


def run(args: argparse.Namespace) -> int:
    names = [name for name in BENCHMARKS if "all" in args.benchmarks or name in args.benchmarks]
    if args.revision and len(names) > 1:
        raise ValueError(f"--revision {args.revision}: must come with one benchmark, not {len(names)}")
    paths = {name: args.output_dir / SOURCES[name].file for name in names}
    for path in paths.values():
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; must be a file")
        if path.exists() and not args.force:
            raise ValueError(f"{path}: already exists; --force overwrites it")
    failed = 0
    for name, path in paths.items():
        source = SOURCES[name]
        try:
            items = spread(source.fetch(args.revision or source.revision), source.spread_over, args.k, args.seed)
            write(path, items, name)
        except OSError as error:
            print(f"error: {name}: {one_line(error)}", file=sys.stderr)
            failed += 1
            continue
        short = f" (all there are; --k asked for {args.k})" if args.k and len(items) < args.k else ""
        print(f"{path}: {len(items)} items{short}")
    return int(failed > 0)


def main(argv: list[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
