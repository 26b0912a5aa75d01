"""One method's answers to one question: single prompts and conversations, with the same prompts and limits for all.

Each question starts from empty caches. Timings (decode seconds, every device synchronised) come from the decoders.

    settings = GenerationSettings(("target", "speculative"), DecodeConfig(max_new_tokens=64))
    conversation = run_conversation(pair, ["Why is the sky blue?"], "target", settings=settings, index=0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pdevis.config import DecodeConfig
from pdevis.generation import Generation
from pdevis.reasoning.reasoning_stream import ReasoningStream, prompt_opening
from pdevis.reasoning.split_reasoning import assistant_message
from pdevis.text import read_thoughts

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class GenerationSettings:
    """Settings shared by all items.

    Args:
        methods: decoders that answer, in the order in which they run.
        decode: limits and sampling; the seeds of single answers are derived from its seed.
        chat: put prompts into the chat template; False: use them unchanged, turns separated by an empty line.
    """

    methods: tuple[str, ...]
    decode: DecodeConfig
    chat: bool = True


@dataclass
class Conversation:
    """One method's answers to the turns of one question, the prompt ids of each, and its reasoning."""

    prompts: list[list[int]] = field(default_factory=list)
    answers: list[Generation] = field(default_factory=list)
    thoughts: list[ReasoningStream] = field(default_factory=list)


def run_conversation(
    pair: SpeculativePair, turns: Sequence[str], method: str, *, settings: GenerationSettings, index: int
) -> Conversation:
    """Answer the turns one after another, each with the earlier turns and answers as its context, without reasoning.

    Args:
        index: number of the question, from which the seeds of its answers are derived.
    """
    messages: list[dict[str, str]] = []
    conversation = Conversation()
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if settings.chat:
            ids = pair.encode(messages)
        else:
            ids = pair.encode("\n\n".join(message["content"] for message in messages), chat=False)
        config = replace(settings.decode, seed=derive_seed(settings.decode.seed, index=index, turn=number))
        answer = pair.generate(ids, config, method=method)
        thoughts = read_thoughts(answer.ids, pair.tokenizer, prompt_opening(pair.tokenizer, ids))
        messages.append(assistant_message(thoughts.split))
        conversation.prompts.append(ids)
        conversation.answers.append(answer)
        conversation.thoughts.append(thoughts)
    return conversation


def derive_seed(seed: int | None, *, index: int, turn: int) -> int | None:
    """Seed of one answer: independent of the process that computes it and of the order of answers."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed} {index} {turn}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def warm_up(pair: SpeculativePair, turns: Sequence[str], settings: GenerationSettings) -> None:
    """Generate a short answer by every method, so that no item is timed with costs that occur only once."""
    tokens = min(settings.decode.max_new_tokens, WARM_UP_TOKENS)
    short = replace(settings, decode=replace(settings.decode, max_new_tokens=tokens))
    for method in settings.methods:
        run_conversation(pair, turns[:1], method, settings=short, index=0)
    pair.reset()
