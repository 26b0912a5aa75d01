"""Result files: the content of an entry, and how files of entries are written and read.

One entry per question: the task's own keys, then one block per method, or "error" if the question failed. A value
that does not exist is None, never 0. Seconds and counts are stored; a summary adds them up and divides at the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from pdevis.benchmarks.tasks import BENCHMARKS, get_task
from pdevis.generation import DecodeStats, Generation
from pdevis.reasoning.reasoning_stream import ReasoningStream
from pdevis.reasoning.split_reasoning import split_reasoning
from pdevis.util.files import encode_json, parse_json, read_text

ARRAY_KEYS = {"target": "target_only", "drafter": "drafter_only", "speculative": "speculative"}
LINES_KEYS = {"target": "target", "drafter": "draft", "speculative": "speculative"}
METHODS = tuple(ARRAY_KEYS)  # in the order in which they run
LINES = ("specbench",)  # benchmarks whose results are JSON lines

Entry = dict[str, Any]  # one question: question_id, the task's own keys, then a `Block` per method or "error"
Meta = dict[str, Any]  # benchmark, settings, versions, pair: the header of a run; with further facts its meta file


class Block(TypedDict, total=False):
    """Result of one method on one question. Those after `token_ids` exist for speculative decoding only."""

    output_text: str
    tokens_generated: int  # ids, EOS included
    seconds: float  # decoding, without prefill
    throughput_toks_per_sec: float | None
    mean_skip: float | None
    prefill_seconds: float
    prompt_tokens: int
    stop_reason: str | None
    token_ids: list[int]
    acceptance_rate: float | None
    accept_lengths: list[int]
    spec_target_model_calls_reported: int
    draft_seconds: float
    verify_seconds: float
    drafted: int
    accepted: int
    draft_steps: int
    serial_depth: float | None
    mode: str
    same_as_target: bool  # greedy runs with both methods
    first_difference: dict[str, Any]  # see lossless_check
    prompt_opens_thought: str  # the tag at the end of the prompt that opens a thought, if there is one
    reasoning_text: str  # what the model thought, if it did
    reasoning_tokens: int  # of these thoughts, tags included
    answer_text: str  # the text without them, which is scored
    turns: list[Block]  # SpecBench: of each turn of the conversation; the other values are their sums


def method_keys(benchmark: str) -> dict[str, str]:
    """Name of each method's block in the result files of a benchmark."""
    return LINES_KEYS if benchmark in LINES else ARRAY_KEYS


def make_block(stats: DecodeStats, text: str, ids: list[int], thoughts: ReasoningStream | None = None) -> Block:
    """Block of one answer; `thoughts` is the division of its text, None if it is not known."""
    block: Block = {
        "output_text": text,
        "tokens_generated": stats.new_tokens,
        "seconds": stats.decode_seconds,
        "throughput_toks_per_sec": stats.tokens_per_second,
        "mean_skip": stats.mean_skip,
        "prefill_seconds": stats.prefill_seconds,
        "prompt_tokens": stats.prompt_tokens,
        "stop_reason": stats.stop_reason,
        "token_ids": ids,
    }
    if stats.method == "speculative":
        block |= {
            "acceptance_rate": stats.acceptance_rate,
            "accept_lengths": stats.accept_lengths,
            "spec_target_model_calls_reported": stats.rounds,
            "draft_seconds": stats.draft_seconds,
            "verify_seconds": stats.verify_seconds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "draft_steps": stats.draft_steps,
            "serial_depth": stats.serial_depth,
            "mode": stats.mode,
        }
    if thoughts and thoughts.opening:
        block["prompt_opens_thought"] = thoughts.opening
    if thoughts and thoughts.tokens:
        split = thoughts.split
        block |= {"reasoning_text": split.reasoning, "reasoning_tokens": thoughts.tokens, "answer_text": split.answer}
    return block


def scored_text(block: Block) -> str:
    """The text of a block as it is scored: from the tag that opens its thought, which may be part of the prompt."""
    return block.get("prompt_opens_thought", "") + block["output_text"]


def count_answers(block: Block) -> tuple[int, int]:
    """Number of answers of a block, and of those that end inside a thought."""
    answers = block.get("turns") or [block]
    return len(answers), sum(not split_reasoning(scored_text(answer)).finished for answer in answers)


def make_conversation_block(turns: Sequence[Generation], thoughts: Sequence[ReasoningStream]) -> Block:
    """Block of a question of several turns: their sums, texts and ids joined, and "turns" with a block of each."""
    blocks = [
        make_block(turn.stats, turn.text, turn.ids, divided) for turn, divided in zip(turns, thoughts, strict=True)
    ]
    text = "\n\n".join(turn.text for turn in turns)
    total = make_block(
        DecodeStats.sum([turn.stats for turn in turns]), text, [token for turn in turns for token in turn.ids]
    )
    if thinking := [block for block in blocks if "reasoning_tokens" in block]:
        total["reasoning_text"] = "\n\n".join(block["reasoning_text"] for block in thinking)
        total["reasoning_tokens"] = sum(block["reasoning_tokens"] for block in thinking)
    return total | {"turns": blocks}


def encode_meta(meta: Meta) -> bytes:
    """Encode as a JSON object with one key per line, so that two files can be compared with diff."""
    lines = [f"  {encode_json(key).decode()}: {encode_json(value).decode()}" for key, value in meta.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def encode_results(benchmark: str, entries: Sequence[Entry]) -> bytes:
    """Encode a result file: JSON lines for SpecBench, a JSON array (an entry per line) for the others."""
    lines = [encode_json(entry) for entry in entries]
    if benchmark in LINES:
        return b"".join(line + b"\n" for line in lines)
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


def meta_path(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def read_meta(path: Path) -> Meta | None:
    """Meta data of the run that wrote the results at `path`; None if its meta file does not exist.

    Raises:
        ValueError: the meta file is broken; names it.
    """
    path = meta_path(Path(path))
    try:
        meta = parse_json(read_text(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: must be JSON: {error}") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: must be a JSON object")
    return meta


def read_results(path: Path, benchmark: str | None = None) -> list[Entry]:
    """Read the entries of a result file, a JSON array or JSON lines.

    Args:
        path: file that an evaluate script wrote.
        benchmark: benchmark that the results must belong to; None: any.

    Raises:
        ValueError: the file cannot be read, is not a result file, or belongs to another benchmark; names the file, and
            line or item.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    located = _parse(path, text)
    if not located:
        raise ValueError(f"{path}: holds no results")
    for location, entry in located:
        _check_entry(f"{path}: {location}", entry)
    entries = [entry for _, entry in located]
    if benchmark is not None:
        _check_benchmark(path, entries, benchmark)
    return entries


def _parse(path: Path, text: str) -> list[tuple[str, Any]]:
    """Parse the file into ("item N" or "line N", value) of every element."""
    if text.lstrip().startswith("["):
        try:
            return [(f"item {number}", value) for number, value in enumerate(parse_json(text), 1)]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {error.lineno}: must be JSON: {error.msg}") from None
    if text.startswith("{\n"):
        raise ValueError(f"{path}: must be a JSON array or JSON lines: this is one object, as an ablation writes it")
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append((f"line {number}", parse_json(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number}: must be JSON: {error.msg}") from None
    return values


def _check_entry(location: str, entry: Any) -> None:
    if isinstance(entry, dict) and "header" in entry:
        raise ValueError(f"{location}: this is the journal of an unfinished run: finish it with --resume")
    if not isinstance(entry, dict) or "question_id" not in entry:
        raise ValueError(f"{location}: must be an object with question_id: not a result of an evaluate script")
    if isinstance(entry.get("error"), str):
        return
    blocks = [entry[key] for key in {*ARRAY_KEYS.values(), *LINES_KEYS.values()} if key in entry]
    if not blocks:
        raise ValueError(f"{location}: must have 'error' or a block of {', '.join(METHODS)}: not a result file")
    if not all(isinstance(block, dict) and "output_text" in block for block in blocks):
        raise ValueError(f"{location}: every method's block must be an object with output_text")


def _benchmark_of(entry: Entry) -> str | None:
    """Return the benchmark whose own keys an entry has, the one with most keys; None if it has those of none."""
    own_keys = {name: get_task(name).own_keys for name in BENCHMARKS}
    present = [name for name, keys in own_keys.items() if keys and all(key in entry for key in keys)]
    return max(present, key=lambda name: len(own_keys[name]), default=None)


def _check_benchmark(path: Path, entries: list[Entry], benchmark: str) -> None:
    meta = read_meta(path) or {}
    actual = meta.get("benchmark") or _benchmark_of(entries[0])
    expects_lines = benchmark in LINES
    blocks = {key for entry in entries for key in entry}
    wrong_keys = bool(blocks & ({"target_only", "drafter_only"} if expects_lines else {"target", "draft"}))
    if (actual or benchmark) != benchmark or wrong_keys or (actual is None and get_task(benchmark).own_keys):
        raise ValueError(f"{path}: these are results of {actual or 'another benchmark'}, not of {benchmark}")
