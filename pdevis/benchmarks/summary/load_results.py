"""Read what a summary works on: the questions of one run, each with its methods' blocks and scores. Loads no model.

run = load_run(Path("results/wmt.json"), "wmt")  # or the journal of an unfinished run, *.partial.jsonl
questions = read_questions(run, get_task("wmt"))
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.journal import SUFFIX, find_journals, journal_path, read_journals
from pdevis.benchmarks.runs.result_files import method_keys, read_meta, read_results, scored_text

if TYPE_CHECKING:
    from pdevis.benchmarks.tasks import Task


@dataclass
class RunResults:
    """The entries of one result file, or, if `partial`, of the journals of a run that has not finished."""

    path: Path
    benchmark: str
    entries: list[dict[str, Any]]
    meta: dict[str, Any]
    partial: bool = False

    @property
    def errors(self) -> Counter[str]:
        """Number of entries with each error message."""
        return Counter(entry["error"] for entry in self.entries if isinstance(entry.get("error"), str))


@dataclass
class Question:
    """One question that did not fail: blocks and scores of the methods that answered it."""

    entry: dict[str, Any]
    blocks: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Number of turns of its conversation."""
        return max(len(block.get("turns") or [block]) for block in self.blocks.values())


def output_of_journal(path: Path) -> Path | None:
    """Return the result file that a journal belongs to; None if the path is not named like a journal."""
    if not path.name.endswith(SUFFIX):
        return None
    output = path.with_name(path.name.removesuffix(SUFFIX))
    without_rank = output.with_name(re.sub(r"\.\d+$", "", output.name))
    return without_rank if path in find_journals(without_rank) else output


def load_run(path: Path, benchmark: str) -> RunResults:
    """Read the results of `benchmark` at `path`, or the journals of an unfinished run if `path` names one.

    Raises:
        ValueError: for a file that is missing, broken, or another benchmark's; in one line that names file and line.
    """
    output = output_of_journal(path)
    if output is not None:
        return _load_journals(path, output, benchmark)
    if not path.exists() and journal_path(path).exists():
        raise ValueError(f"{path}: does not exist, the run has not finished; its journal is {journal_path(path)}")
    entries = read_results(path, benchmark)
    return RunResults(path, benchmark, entries, read_meta(path) or {})


def _load_journals(path: Path, output: Path, benchmark: str) -> RunResults:
    journals = read_journals(find_journals(output) or [path])
    if not journals:
        raise ValueError(f"{path}: holds no results yet")
    header = journals[0].header or {}
    if header.get("kind") == "ablation":
        raise ValueError(f"{path}: this is the journal of an ablation: summary_ablation.py reads it")
    if header.get("benchmark") != benchmark:
        name = header.get("benchmark") or "another benchmark"
        raise ValueError(f"{path}: this is the journal of a run of {name}, not of {benchmark}")
    entries = {index: entry for journal in journals for index, entry in journal.entries.items()}
    if not entries:
        raise ValueError(f"{path}: holds no results yet")
    return RunResults(path, benchmark, [entries[index] for index in sorted(entries)], header, partial=True)


def read_questions(run: RunResults, task: Task | None) -> list[Question]:
    """Return the questions that did not fail, scored by `task` (None: not scored).

    Raises:
        ValueError: for an entry that the task cannot score, naming the question.
    """
    keys = method_keys(run.benchmark)
    questions = []
    for entry in run.entries:
        blocks = {method: entry[key] for method, key in keys.items() if isinstance(entry.get(key), dict)}
        if isinstance(entry.get("error"), str) or not blocks:
            continue
        question = Question(entry, blocks)
        for method, block in blocks.items():
            question.scores[method] = _score(run, task, entry, block) if task else {}
        questions.append(question)
    return questions


def _score(run: RunResults, task: Task, entry: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    try:
        return task.score(entry, scored_text(block))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        question = f"{run.path}: question {entry.get('question_id')!r}"
        raise ValueError(f"{question}: cannot be scored as {run.benchmark}: {type(error).__name__} {error}") from None
