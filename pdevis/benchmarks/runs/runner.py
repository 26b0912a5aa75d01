"""The runner that all benchmarks share: every method over every item, with the same prompts and limits.

A generator of finished entries; who consumes it writes them down. Each question starts from empty caches, and timings
(decode seconds, every device synchronised) come from the decoders themselves.

    for index, entry in run_items(pair, get_task("mmlu"), items, Conditions(methods, decode)): ...

Importing this is cheap: models and torch come in with the pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.result_files import LINES, METHOD_KEYS, METHODS, blocks_of, make_block
from pdevis.config import DecodeConfig
from pdevis.generation import Generation
from pdevis.util.argtypes import one_line

if TYPE_CHECKING:
    from pdevis.benchmarks.tasks import Task
    from pdevis.pair import SpeculativePair

WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class Conditions:
    """What is the same for all items.

    Args:
        methods: which decoders answer; they run in the order of `METHODS`.
        decode: limits and sampling; its seed is where the seeds of the single answers come from.
        chat: prompts go through the chat template; False: they stand as they are, turns with an empty line between.
    """

    methods: tuple[str, ...]
    decode: DecodeConfig
    chat: bool = True

    @property
    def ordered(self) -> list[str]:
        return [method for method in METHODS if method in self.methods]


@dataclass
class Conversation:
    """One method's answers to the turns of one question, and the prompt ids of each."""

    prompts: list[list[int]]
    answers: list[Generation]


def converse(
    pair: SpeculativePair, turns: Sequence[str], method: str, conditions: Conditions, index: int
) -> Conversation:
    """Answer the turns one after another, each with the earlier ones and their answers as its context."""
    messages: list[dict[str, str]] = []
    done = Conversation([], [])
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if conditions.chat:
            ids = pair.encode(messages)
        else:
            ids = pair.encode("\n\n".join(message["content"] for message in messages), chat=False)
        config = replace(conditions.decode, seed=derive_seed(conditions.decode.seed, index, number))
        answer = pair.generate(ids, config, method=method)
        messages.append({"role": "assistant", "content": answer.text})
        done.prompts.append(ids)
        done.answers.append(answer)
    return done


def derive_seed(seed: int | None, index: int, turn: int) -> int | None:
    """The seed of one answer: the same whatever process computes it, in whatever order."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed} {index} {turn}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def warm_up(pair: SpeculativePair, turns: Sequence[str], conditions: Conditions) -> None:
    """A short answer by every method, so that no item pays for what only happens once."""
    tokens = min(conditions.decode.max_new_tokens, WARM_UP_TOKENS)
    short = replace(conditions, decode=replace(conditions.decode, max_new_tokens=tokens))
    for method in conditions.ordered:
        converse(pair, turns[:1], method, short, 0)
    pair.reset()


def run_item(
    pair: SpeculativePair, task: Task, item: dict[str, Any], conditions: Conditions, index: int
) -> dict[str, Any]:
    """The entry of one question: a block per method; greedy, the speculative ids are compared with the target's."""
    entry = dict(task.entry(item))
    keys = METHOD_KEYS(task.name)
    turns = task.prompts(item)
    done: dict[str, Conversation] = {}
    for method in conditions.ordered:
        done[method] = converse(pair, turns, method, conditions, index)
        answers = done[method].answers
        whole = task.name in LINES
        entry[keys[method]] = (
            blocks_of(answers) if whole else make_block(answers[0].stats, answers[0].text, answers[0].ids)
        )
    if conditions.decode.greedy and {"target", "speculative"} <= set(done):
        from pdevis.benchmarks.runs.lossless_check import compare_turns

        target, other = done["target"], done["speculative"]
        entry[keys["speculative"]] |= compare_turns(pair, target.prompts, target.answers, other.answers)
    return entry


def run_items(
    pair: SpeculativePair, task: Task, items: Sequence[tuple[int, dict[str, Any]]], conditions: Conditions
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, entry) of each (number, item), as they are finished; a question that fails yields an "error" entry."""
    warm = False
    for index, item in items:
        try:
            if not warm:
                warm_up(pair, task.prompts(item), conditions)
                warm = True
            entry = run_item(pair, task, item, conditions, index)
        except ConnectionError:  # the drafter's own processes are gone: every further question would fail too
            raise
        except Exception as error:
            entry = failure(task, item, error)
        yield index, entry


def failure(task: Task, item: dict[str, Any], error: Exception) -> dict[str, Any]:
    """The entry of a question that failed."""
    return {**task.entry(item), "error": f"{type(error).__name__}: {one_line(error)}"}
