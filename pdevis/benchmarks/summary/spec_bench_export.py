"""Write SpecBench results as answer files of Spec-Bench, for its own scorer (evaluation/speed.py of its repository).

One line per question: {question_id, category, answer_id, model_id, choices: [{index, turns, decoding_steps, new_tokens,
wall_time, accept_lengths}], tstamp}. `turns`, `decoding_steps`, `new_tokens` and `wall_time` have one value per turn;
`accept_lengths` is one flat list over the turns, one number per target forward. As there, the wall time of a turn
includes the forward over its prompt, and the baseline (plain decoding) accepts one token per step.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pdevis.benchmarks.summary.load_results import Question, RunResults, read_questions
from pdevis.util.files import encode_json, write_atomic

BASELINE = "-baseline"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "pdevis.spec-bench")


def baseline_path(path: Path) -> Path:
    """Return the file of the target's answers, next to that of the method: answers.jsonl -> answers-baseline.jsonl."""
    return path.with_name(path.stem + BASELINE + path.suffix)


def write_answers(run: RunResults, path: Path) -> list[Path]:
    """Write the speculative answers to `path` and the target's to `baseline_path(path)`; return the written files.

    Questions that failed have no answer and are left out.

    Raises:
        ValueError: if the run has no speculative answers, or a block lacks what the format needs.
    """
    questions = read_questions(run, None)
    written = []
    for method, file in (("speculative", path), ("target", baseline_path(path))):
        lines = [_answer(run, question, method) for question in questions if method in question.blocks]
        if lines:
            write_atomic(file, b"".join(encode_json(line) + b"\n" for line in lines))
            written.append(file)
        elif method == "speculative":
            raise ValueError(f"{run.path}: has no speculative answers, which --spec-bench-answers writes")
    return written


def _answer(run: RunResults, question: Question, method: str) -> dict[str, Any]:
    turns = question.blocks[method].get("turns") or [question.blocks[method]]
    entry, model = question.entry, f"pdevis-{method}"
    lengths = [_accept_lengths(turn, method) for turn in turns]
    if any(turn.get("seconds") is None for turn in turns):
        raise ValueError(f"{run.path}: question {entry['question_id']!r}: {method} has a turn without seconds")
    choice = {
        "index": 0,
        "turns": [turn["output_text"] for turn in turns],
        "decoding_steps": [len(turn_lengths) for turn_lengths in lengths],
        "new_tokens": [turn["tokens_generated"] for turn in turns],
        "wall_time": [turn["seconds"] + (turn.get("prefill_seconds") or 0.0) for turn in turns],
        "accept_lengths": [length for turn_lengths in lengths for length in turn_lengths],
    }
    return {
        "question_id": entry["question_id"],
        "category": entry["category"],
        # derived from the question, so that the same results give the same file
        "answer_id": uuid.uuid5(NAMESPACE, f"{model} {entry['question_id']}").hex[:22],
        "model_id": model,
        "choices": [choice],
        "tstamp": run.path.stat().st_mtime,
    }


def _accept_lengths(turn: dict[str, Any], method: str) -> list[int]:
    return [1] * turn["tokens_generated"] if method == "target" else list(turn["accept_lengths"])
