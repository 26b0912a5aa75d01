"""Build the local benchmark files from their public datasets, at pinned revisions.

    python Data/prepare.py all
    python Data/prepare.py mmlu --k 500 --seed 1
    python Data/prepare.py wmt math --output-dir my-data --force

Items are shuffled with a seed and spread evenly over languages, subjects or categories, so that the first items of a
file are a fair sample; --k N keeps the first N. A file is written completely or not at all, and none is overwritten
without --force. If the hub cannot be reached, WMT comes from sacrebleu's copy of the same test set; with
HF_HUB_OFFLINE=1, datasets come from the hub's cache. Data/README.md names sources, revisions and licences.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks import BENCHMARKS, Item, get_task
from pdevis.benchmarks.tasks.mgsm import LANGUAGES
from pdevis.benchmarks.tasks.mmlu import OPTIONS, format_question
from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import one_line

SPEC_BENCH_FILE = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/{revision}/data/spec_bench/question.jsonl"
SACREBLEU_SET = "wmt14/full"  # the 3003 sentences of the hub's test split; "wmt14" has 2737 of them


class FetchError(OSError):
    """A dataset cannot be fetched; the message names it and the reason."""


class Unreachable(FetchError):
    """The hub does not respond."""


def reason(error: BaseException) -> str:
    """Message of an error and, if it differs, that of its first cause, on one line."""
    first = error
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__
    messages = dict.fromkeys(one_line(cause) or type(cause).__name__ for cause in (error, first))
    return ": ".join(messages)


def rows(dataset: str, revision: str, split: str = "test", table: str | None = None, **options: Any) -> list[Item]:
    """Rows of a dataset of the hub, or of one of its tables (tab-separated values)."""
    from datasets import load_dataset

    ping(dataset)
    try:
        if table:
            file = f"hf://datasets/{dataset}@{revision}/{table}"
            return list(load_dataset("csv", data_files={split: file}, split=split, delimiter="\t", **options))
        return list(load_dataset(dataset, revision=revision, split=split, **options))
    except Exception as error:
        raise FetchError(f"{dataset} at revision {revision}: {reason(error)}") from error


def ping(dataset: str) -> None:
    """Send one request without retries, since the library needs half a minute until it fails.

    Raises:
        Unreachable: there is no network, and HF_HUB_OFFLINE is not set.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_hf_file_metadata(
            hf_hub_url(dataset, "README.md", repo_type="dataset"), timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code >= 500:
            raise Unreachable(f"{dataset}: the hub does not respond ({reason(error)})") from error
    except Exception as error:
        raise Unreachable(
            f"{dataset}: the hub cannot be reached ({reason(error)}); "
            "with a copy in the hub's cache, set HF_HUB_OFFLINE=1"
        ) from error


def fetch_wmt(revision: str) -> list[Item]:
    try:
        # Only the test files: the training split has gigabytes.
        files = {"test": "de-en/test-*.parquet"}
        table = rows("wmt/wmt14", revision, data_files=files, verification_mode="no_checks")
        pairs = [(row["translation"]["de"], row["translation"]["en"]) for row in table]
    except Unreachable as error:
        print(f"{error}; taking sacrebleu's {SACREBLEU_SET}", file=sys.stderr)
        pairs = sacrebleu_pairs("de-en")
    return [
        {
            "question_id": number,
            "prompt": [f"Translate German to English: {german}"],
            "label": [english],
            "target_language": "en",
        }
        for number, (german, english) in enumerate(pairs, 1)
    ]


def sacrebleu_pairs(languages: str) -> list[tuple[str, str]]:
    """Sources and references of sacrebleu's test set, downloaded (and verified by its MD5) if it does not exist yet."""
    from sacrebleu.utils import get_reference_files, get_source_file

    try:
        files = [get_source_file(SACREBLEU_SET, languages), *get_reference_files(SACREBLEU_SET, languages)[:1]]
        sources, labels = (Path(file).read_text(encoding="utf-8").rstrip("\n").split("\n") for file in files)
    except (Exception, SystemExit) as error:  # it exits the program if a checksum is wrong
        raise FetchError(f"sacrebleu's {SACREBLEU_SET} cannot be fetched: {reason(error)}") from error
    if len(sources) != len(labels):
        raise FetchError(f"sacrebleu's {SACREBLEU_SET} is broken: {len(sources)} sources, {len(labels)} references")
    return list(zip(sources, labels))


def fetch_mmlu(revision: str) -> list[Item]:
    files = {"test": "all/test-*.parquet"}
    table = rows("cais/mmlu", revision, data_files=files, verification_mode="no_checks")
    return [
        {
            "question_id": number,
            "subject": row["subject"],
            "prompt": format_question(row["question"], row["choices"]),
            "label": OPTIONS[row["answer"]],
        }
        for number, row in enumerate(table, 1)
    ]


def fetch_mgsm(revision: str) -> list[Item]:
    """Build items from the plain tables (question, answer), which do not need the dataset's own code."""
    items: list[Item] = []
    for language in LANGUAGES:
        plain = {"header": None, "names": ["question", "answer"], "quoting": csv.QUOTE_NONE}
        for row in rows("juletxara/mgsm", revision, table=f"mgsm_{language}.tsv", **plain):
            label = int(str(row["answer"]).replace(",", ""))
            items.append(
                {"question_id": len(items) + 1, "language": language, "prompt": row["question"], "label": label}
            )
    return items


def fetch_math(revision: str) -> list[Item]:
    return [
        {
            "question_id": row["unique_id"],
            "subject": row["subject"],
            "level": row["level"],
            "prompt": row["problem"],
            "label": row["answer"],
        }
        for row in rows("HuggingFaceH4/MATH-500", revision)
    ]


def fetch_ifeval(revision: str) -> list[Item]:
    """Build items without the empty arguments: the table has a column for every argument of any instruction."""
    return [
        {
            "question_id": row["key"],
            "prompt": row["prompt"],
            "instruction_id_list": list(row["instruction_id_list"]),
            "kwargs": [{name: value for name, value in given.items() if value is not None} for given in row["kwargs"]],
        }
        for row in rows("google/IFEval", revision, split="train")
    ]


def fetch_specbench(revision: str) -> list[Item]:
    """Read Spec-Bench's question file line by line, since its `reference` has several types."""
    from datasets import DownloadManager

    url = SPEC_BENCH_FILE.format(revision=revision)
    try:
        lines = Path(DownloadManager().download(url)).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except Exception as error:
        raise FetchError(f"{url} cannot be fetched: {reason(error)}") from error


@dataclass(frozen=True)
class Source:
    """Origin of a benchmark's file.

    Args:
        file: name of the local file.
        revision: pinned revision of the dataset.
        fetch: downloads a revision with the `datasets` library (its cache counts) and returns the items.
        spread_over: key whose values alternate in the file.
    """

    file: str
    revision: str
    fetch: Callable[[str], list[Item]]
    spread_over: str | None = None


SOURCES = {
    "wmt": Source("wmt.json", "b199e406369ec1b7634206d3ded5ba45de2fe696", fetch_wmt),
    "mmlu": Source("mmlu.json", "c30699e8356da336a370243923dbaf21066bb9fe", fetch_mmlu, "subject"),
    "mgsm": Source("mgsm.json", "b2f13d426afe3be8d69a7e739b36724db8b66bbc", fetch_mgsm, "language"),
    "math": Source("math.json", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", fetch_math, "subject"),
    "ifeval": Source("ifeval.json", "966cd89545d6b6acfd7638bc708b98261ca58e84", fetch_ifeval),
    "specbench": Source(
        "Specbench_filtered.jsonl", "fd2c1cd7d2201ef71db4c5f4e455008f017967bf", fetch_specbench, "category"
    ),
}


def spread(items: Iterable[Item], key: str | None, k: int | None, seed: int) -> list[Item]:
    """Shuffle the items so that the values of `key` alternate, and keep the first k (None: all)."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(item[key] if key else None, []).append(item)
    generator = random.Random(seed)
    ordered = []
    for group_number, group in enumerate(groups.values()):
        generator.shuffle(group)
        ordered += [(position, group_number, item) for position, item in enumerate(group)]
    return [item for _, _, item in sorted(ordered, key=lambda row: row[:2])][:k]


def write(path: Path, items: list[Item], benchmark: str) -> None:
    """Write a file that the benchmark's loader accepts, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            else:
                file.write(json.dumps(items, ensure_ascii=False, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            get_task(benchmark).load(temporary)
        except ValueError as error:
            message = str(error).replace(temporary.name, path.name)
            raise FetchError(f"the dataset is not as expected: {message}") from error
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="of the shuffle (default: %(default)s)"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="folder of the files (default: the folder of this script)",
    )
    parser.add_argument(
        "--revision", metavar="COMMIT", help="revision of the dataset, instead of the pinned one (one benchmark)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that already exist")
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= {minimum}")
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
        note = f" (all that exist; --k is {args.k})" if args.k and len(items) < args.k else ""
        print(f"{path}: {len(items)} items{note}")
    return int(failed > 0)


def main(argv: list[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
