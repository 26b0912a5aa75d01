"""Result entries with known counts, as the evaluate scripts and the speed comparison write them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pdevis.benchmarks.runs.result_files import method_keys
from pdevis.benchmarks.tasks.task import Task
from pdevis.generation import DecodeStats

SPEED = {"target": 10.0, "drafter": 40.0, "speculative": 16.0}


class GroupedTask(Task):
    """A task whose only right answer is "right", grouped by subject."""

    name = "mmlu"
    metrics = ("correct",)
    groups = ("subject",)

    def score_answer(self, entry: dict[str, Any], answer: str) -> dict[str, Any]:
        return {"correct": float(answer == "right"), "extracted": answer}


class SpecTask(GroupedTask):
    name = "specbench"
    metrics = ()
    groups = ("category",)

    def score_answer(self, entry: dict[str, Any], answer: str) -> dict[str, Any]:
        return {}


def block(method: str, text: str, tokens: int, generator: random.Random) -> dict[str, Any]:
    seconds = tokens / SPEED[method] * generator.uniform(0.9, 1.1)
    result: dict[str, Any] = {
        "output_text": text,
        "tokens_generated": tokens,
        "seconds": seconds,
        "throughput_toks_per_sec": tokens / seconds,
        "mean_skip": None,
        "prefill_seconds": 0.5,
        "token_ids": list(range(tokens)),
    }
    if method == "speculative":
        lengths = []
        while sum(lengths) < tokens:
            lengths.append(min(generator.randint(1, 5), tokens - sum(lengths)))
        rounds = len(lengths)
        result |= {
            "mean_skip": 2.0,
            "acceptance_rate": (tokens - rounds) / (4 * rounds),
            "accept_lengths": lengths,
            "spec_target_model_calls_reported": rounds,
            "draft_seconds": seconds / 4,
            "verify_seconds": seconds / 2,
            "drafted": 4 * rounds,
            "accepted": tokens - rounds,
            "draft_steps": 4 * rounds,
            "same_as_target": True,
        }
    return result


def entries(
    benchmark: str, count: int, methods: tuple[str, ...] = ("target", "drafter", "speculative"), seed: int = 0
) -> list[dict[str, Any]]:
    """`count` entries of "mmlu" or "specbench"; right answers: target 3 of 4, speculative 3 of 4, drafter 1 of 4."""
    generator = random.Random(seed)
    results = []
    for i in range(count):
        if benchmark == "specbench":
            entry: dict[str, Any] = {"question_id": i, "category": ("qa", "writing")[i % 2], "prompt_text": ["Why?"]}
        else:
            entry = {"question_id": i, "prompt": f"{i}?", "label": "A", "subject": f"subject_{i % 3}"}
        for method in methods:
            right = i % 4 == 0 if method == "drafter" else i % 4 != 3
            text = "right" if right else "wrong"
            result = block(method, text, generator.randint(5, 30), generator)
            if benchmark == "specbench":
                turns = [result] + [block(method, "again", 8, generator)] * (i % 2)
                result = joined(turns)
            entry[method_keys(benchmark)[method]] = result
        results.append(entry)
    return results


def joined(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """A SpecBench block: sums over the turns, and the turns."""
    total = dict(turns[0])
    for turn in turns[1:]:
        for key in ("tokens_generated", "seconds", "prefill_seconds", "accept_lengths", "drafted", "accepted"):
            if key in turn:
                total[key] = total[key] + turn[key]
    return total | {"turns": turns}


def save(path: Path, results: list[dict[str, Any]], benchmark: str = "mmlu") -> Path:
    if benchmark == "specbench":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in results))
    else:
        path.write_text(json.dumps(results))
    return path


def save_journal(path: Path, results: list[dict[str, Any]], benchmark: str = "mmlu", first: int = 0) -> Path:
    """The journal of a run that was killed while it wrote a line; `first` is the index of its first item."""
    lines = [json.dumps({"header": {"benchmark": benchmark, "settings": {"gamma": 4}}})]
    lines += [json.dumps({"index": i, "entry": entry}) for i, entry in enumerate(results, first)]
    path.write_text("\n".join(lines) + '\n{"index": 99, "ent')
    return path


def stats(accepts: list[int], drafts: list[int], draft: float, verify: float, total: float) -> dict:
    """Return statistics of a generation whose rounds drafted `drafts` tokens and added `accepts`, bonus included."""
    return asdict(
        DecodeStats(
            new_tokens=sum(accepts),
            rounds=len(accepts),
            drafted=sum(drafts),
            draft_steps=sum(drafts),
            accepted=sum(accepts) - len(accepts),
            accept_lengths=accepts,
            draft_lengths=drafts,
            draft_seconds=draft,
            verify_seconds=verify,
            prefill_seconds=0.5,
            total_seconds=total,
        )
    )


def measured(ids: list[int], seconds: float, stats: dict | None = None, kind: str = "peer", **more) -> dict:
    """Return the measurement of one decoder on one prompt; `more` are further fields of `Decoder.describe`."""
    decoder = {"kind": kind, "gamma": None, "compared": True, "note": None}
    return decoder | more | {"seconds": seconds, "ids": ids, "stats": stats}


def entry(**decoders) -> dict:
    """Return the entry of a finished prompt, with what `measured` returns for each decoder."""
    return {"kind": "prompt", "category": None, "left_out": {}, "contestants": decoders}
