"""Speed of several decoders on the same prompts, in one process and in turn: a drifting machine hurts all alike.

Every contestant writes the same number of tokens behind the same prompt (EOS is ignored). A round runs all of them on
one prompt, in an order that is reversed from prompt to prompt. Speeds are ratios of sums, total time, prompt included;
the spread of a ratio is a 95 % bootstrap interval over the prompts.

    python evaluation/speed/evaluate_speed.py --gammas 4,5
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pdevis.pair import SpeculativePair
from pdevis.records import DecodeConfig, DecodeStats, DraftConfig

WARM_UP_TOKENS = 8
RESAMPLES = 2000
# Varied on purpose: prose, lists, code, arithmetic, translation, facts, dialogue, formats, a long context, a story.
PROMPTS = (
    "Why is the sky blue? Explain it to a ten-year-old in a few sentences.",
    "Write a Python function that returns the n-th Fibonacci number, and explain how it works.",
    "List seven things to check before a long bicycle tour.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Show your steps.",
    "Translate into French: The library opens at nine, but the reading room stays closed until noon.",
    "Who was Marie Curie, and what is she known for?",
    "Write a short dialogue between a customer who wants to return a kettle and a patient shop assistant.",
    "Give an example of a JSON object that describes a book with title, author, year and two reviews.",
    "Summarise in two sentences: The town council met on Tuesday evening to discuss the future of the old mill. Some "
    "members want to turn it into a museum, others into flats; the mayor asked for a report on the costs of both plans "
    "by the end of the month, and an architect was invited to show her drawings to the public in the town hall.",
    "Write the beginning of a story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain the difference between a list and a tuple in Python, with a small example of each.",
    "What are the main causes of the seasons on Earth?",
)


@dataclass(frozen=True)
class Contestant:
    """A decoder to be timed: `run` takes (prompt ids, new tokens) and returns the new ids and, of ours, statistics."""

    name: str
    run: Callable[[list[int], int], tuple[list[int], DecodeStats | None]]


@dataclass
class Timing:
    """What one contestant did, prompt by prompt."""

    name: str
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    stats: list[DecodeStats] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


def our_method(pair: SpeculativePair, name: str, method: str, draft: DraftConfig, gamma: int) -> Contestant:
    """One of pdevis's decoders under the given drafting settings; greedy."""

    def run(ids: list[int], length: int) -> tuple[list[int], DecodeStats]:
        pair.configure(draft)
        config = DecodeConfig(max_new_tokens=length, gamma=gamma, eos_ids=())
        made = pair.generate(ids, config, method)
        return made.ids, made.stats

    return Contestant(name, run)


def transformers_generate(model: Any) -> Contestant:
    """transformers' own greedy `generate` on a loaded model."""

    def run(ids: list[int], length: int) -> tuple[list[int], None]:
        prompt = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=None,  # as for our decoders, EOS does not end the text
                pad_token_id=0,
            )
        return out[0, len(ids) :].tolist(), None

    return Contestant("transformers generate", run)


def measure(
    contestants: Sequence[Contestant],
    prompts: Sequence[list[int]],
    length: int,
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[Timing]:
    """Time every contestant on every prompt (ids), `length` new tokens each, after a warm-up of each."""
    timings = [Timing(contestant.name) for contestant in contestants]
    for contestant in contestants:
        contestant.run(prompts[0], WARM_UP_TOKENS)
    for number, prompt in enumerate(prompts):
        order = range(len(contestants)) if number % 2 == 0 else range(len(contestants) - 1, -1, -1)
        for i in order:
            begin = time.perf_counter()
            ids, stats = contestants[i].run(prompt, length)
            timings[i].seconds.append(time.perf_counter() - begin)
            timings[i].tokens.append(len(ids))
            timings[i].ids.append(ids)
            timings[i].stats += [stats] if stats else []
        on_progress(f"prompt {number + 1} of {len(prompts)}")
    return timings


def ratio(ours: Timing, other: Timing) -> tuple[float, float, float]:
    """Speed of `ours` over `other`, and its 95 % bootstrap interval (prompts resampled, fixed seed)."""
    pick = np.random.default_rng(0).integers(len(ours.seconds), size=(RESAMPLES, len(ours.seconds)))

    def speed(timing: Timing) -> np.ndarray:
        return np.array(timing.tokens)[pick].sum(1) / np.array(timing.seconds)[pick].sum(1)

    low, high = np.percentile(speed(ours) / speed(other), [2.5, 97.5])
    return ours.tokens_per_second / other.tokens_per_second, float(low), float(high)


def report(timings: Sequence[Timing], references: Sequence[str]) -> list[dict[str, Any]]:
    """One row a contestant: speed, ratios to the references, acceptance, cost of drafting and verifying, equality."""
    by_name = {timing.name: timing for timing in timings}
    rows = []
    for timing in timings:
        total = {name: sum(getattr(stats, name) for stats in timing.stats) for name in _SUMS}
        speculative = bool(timing.stats) and total["drafted"] > 0
        row: dict[str, Any] = {
            "name": timing.name,
            "tokens": sum(timing.tokens),
            "seconds": sum(timing.seconds),
            "tokens_per_second": timing.tokens_per_second,
            "ratios": {name: ratio(timing, by_name[name]) for name in references if name in by_name},
            "same_ids": sum(a == b for a, b in zip(timing.ids, timings[0].ids, strict=True)),
            "prompts": len(timing.ids),
        }
        if speculative:
            row |= {
                "acceptance_rate": total["accepted"] / total["drafted"],
                "mean_accept_length": total["new_tokens"] / total["rounds"],
                "mean_skip": total["skipped"] / total["draft_steps"],
                "serial_depth": total["depth"] / total["draft_steps"],
                "draft_ms_per_token": 1000 * total["draft_seconds"] / total["draft_steps"],
                "verify_ms_per_round": 1000 * total["verify_seconds"] / total["rounds"],
            }
        rows.append(row)
    return rows


_SUMS = (
    "drafted",
    "draft_steps",
    "accepted",
    "new_tokens",
    "rounds",
    "skipped",
    "depth",
    "draft_seconds",
    "verify_seconds",
)


def raw(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Everything measured, prompt by prompt, ready for JSON."""
    return [replace(timing, stats=[]).__dict__ | {"stats": [asdict(s) for s in timing.stats]} for timing in timings]
