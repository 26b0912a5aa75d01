"""The public datasets behind the benchmarks, at pinned revisions, as items of this project's files.

`SOURCES[name].fetch(revision)` downloads one with the `datasets` library (its cache counts) and returns its items.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.mgsm import LANGUAGES
from pdevis.benchmarks.tasks.mmlu import OPTIONS, format_question

Item = dict[str, Any]
SPEC_BENCH_FILE = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/{revision}/data/spec_bench/question.jsonl"
SACREBLEU_SET = "wmt14/full"  # the 3003 sentences of the hub's test split; plain "wmt14" has 2737 of them


class FetchError(OSError):
    """A dataset cannot be had; the message says which one and why."""


class Unreachable(FetchError):
    """The hub does not answer."""


def reason(error: BaseException) -> str:
    """The message of an error and, where it says something else, that of its first cause, on one line."""
    first = error
    while first.__cause__ or first.__context__:
        first = first.__cause__ or first.__context__
    messages = dict.fromkeys(" ".join(str(each).split()) or type(each).__name__ for each in (error, first))
    return ": ".join(messages)


def rows(dataset: str, revision: str, split: str = "test", table: str | None = None, **options: Any) -> list[Item]:
    """The rows of a dataset of the hub; of one of its tables (tab-separated values) where that is named."""
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
    """One request without retries: the library's own would take half a minute to give up.

    Raises:
        Unreachable: where there is no network and HF_HUB_OFFLINE does not ask for the cache.
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
            raise Unreachable(f"{dataset}: the hub does not answer ({reason(error)})") from error
    except Exception as error:
        raise Unreachable(
            f"{dataset}: the hub cannot be reached ({reason(error)}); "
            "with a copy in the hub's cache, set HF_HUB_OFFLINE=1"
        ) from error


def fetch_wmt(revision: str) -> list[Item]:
    try:
        # Only the test files: the training split has gigabytes.
        files = {"test": "de-en/test-*.parquet"}
        found = rows("wmt/wmt14", revision, data_files=files, verification_mode="no_checks")
        pairs = [(row["translation"]["de"], row["translation"]["en"]) for row in found]
    except Unreachable as error:
        print(f"{error}; taking sacrebleu's {SACREBLEU_SET}", file=sys.stderr)
        pairs = sacrebleu_pairs("de-en")
    return [
        {"question_id": number, "prompt": [f"Translate German to English: {german}"], "label": [english]}
        for number, (german, english) in enumerate(pairs, 1)
    ]


def sacrebleu_pairs(languages: str) -> list[tuple[str, str]]:
    """Sources and references of sacrebleu's test set, downloaded (and checked by its md5) if it does not exist yet."""
    from sacrebleu.utils import get_reference_files, get_source_file

    try:
        files = [get_source_file(SACREBLEU_SET, languages), *get_reference_files(SACREBLEU_SET, languages)[:1]]
        sources, labels = (Path(file).read_text(encoding="utf-8").rstrip("\n").split("\n") for file in files)
    except (Exception, SystemExit) as error:  # it leaves the program where a checksum is wrong
        raise FetchError(f"sacrebleu's {SACREBLEU_SET} cannot be had: {reason(error)}") from error
    if len(sources) != len(labels):
        raise FetchError(f"sacrebleu's {SACREBLEU_SET} is broken: {len(sources)} sources, {len(labels)} references")
    return list(zip(sources, labels))


def fetch_mmlu(revision: str) -> list[Item]:
    files = {"test": "all/test-*.parquet"}
    found = rows("cais/mmlu", revision, data_files=files, verification_mode="no_checks")
    return [
        {
            "question_id": number,
            "subject": row["subject"],
            "prompt": format_question(row["question"], row["choices"]),
            "label": OPTIONS[row["answer"]],
        }
        for number, row in enumerate(found, 1)
    ]


def fetch_mgsm(revision: str) -> list[Item]:
    """From the plain tables (question, answer), which need none of the dataset's own code."""
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
    """The table has a column for every argument of any instruction: those that are empty are left out."""
    return [
        {
            "question_id": row["key"],
            "prompt": row["prompt"],
            "instruction_id_list": list(row["instruction_id_list"]),
            "kwargs": [{name: value for name, value in each.items() if value is not None} for each in row["kwargs"]],
        }
        for row in rows("google/IFEval", revision, split="train")
    ]


def fetch_specbench(revision: str) -> list[Item]:
    """Spec-Bench's question file; its `reference` has several shapes, which is why it is read line by line."""
    from datasets import DownloadManager

    url = SPEC_BENCH_FILE.format(revision=revision)
    try:
        lines = Path(DownloadManager().download(url)).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except Exception as error:
        raise FetchError(f"{url} cannot be had: {reason(error)}") from error


@dataclass(frozen=True)
class Source:
    """Where a benchmark's file comes from."""

    file: str
    revision: str
    fetch: Callable[[str], list[Item]]
    spread_over: str | None = None  # the key whose values take turns in the file


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
