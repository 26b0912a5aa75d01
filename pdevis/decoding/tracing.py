"""Tracer: writes what each round did, and what the drafter's exact passes saw, into a trace file (trace.py)."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from pdevis.config import DecodeConfig
from pdevis.generation import Draft
from pdevis.loading.weight_reader import unsupported_reason
from pdevis.trace import ExactPass, Sizes, TraceWriter, band


class Tracer:
    """One trace file for the generations of one pair.

    Args:
        path: a new file.

    Raises:
        ValueError: for a path that cannot be used.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.writer = TraceWriter(path)
        self.number = -1  # of the generation
        self.layers, self.sizes = 0, Sizes(0, 1, 0)

    def expect(self, config: Any, head_rows: int | None) -> None:
        """Learn the drafter's sizes from its transformers config.

        Raises:
            ValueError: for a drafter whose hidden states cannot be seen.
        """
        if reason := unsupported_reason(config):
            raise ValueError(f"--trace {self.writer.path}: needs a drafter that runs layer by layer, not {reason}")
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or hidden // heads
        self.layers = config.num_hidden_layers
        self.sizes = Sizes(
            attention=hidden * size * (2 * heads + 2 * kv_heads),
            mlp=3 * hidden * config.intermediate_size,
            head=hidden * min(head_rows or config.vocab_size, config.vocab_size),
        )

    def begin(self, pair: Mapping[str, Any], prompt_tokens: int, config: DecodeConfig) -> None:
        """A generation begins. Raises ValueError where the pair is not the one that the file tells of."""
        self.writer.open(pair=pair, layers=self.layers, sizes=self.sizes)
        self.number += 1
        self.writer.generation(
            number=self.number,
            prompt_tokens=prompt_tokens,
            gamma=config.gamma,
            temperature=config.temperature,
            overlap=config.overlap,
        )

    def round(self, draft: Draft, accepted: int, draft_seconds: float, verify_seconds: float) -> None:
        self.writer.round(
            generation=self.number,
            drafted=len(draft.ids),
            accepted=accepted,
            steps=draft.steps,
            depth=draft.depth,
            draft_seconds=draft_seconds,
            verify_seconds=verify_seconds,
            ahead=draft.ahead,
            passes=[ExactPass(seen.step, seen.tokens, band(seen.similarities)) for seen in draft.passes],
        )
