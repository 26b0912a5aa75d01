"""DraftLoop: a greedy draft without a look from the host, whatever its length.

A draft step (forward, choice of the next token, step to the next position) works on fixed buffers and is captured as a
graph. A draft is one exact forward over the tokens confirmed since the last round, then one replay per token, then one
transfer of all tokens and their log-probabilities to the host.

Shapes: T = tokens of the first forward, γ = tokens of the draft, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdevis.models.causal_lm import argmax_logprob
from pdevis.models.linear import DenseLinear
from pdevis.models.static.fused_forward import FusedChoice
from pdevis.models.static.graphs import Graph
from pdevis.models.static.static_forward import Block, StaticForward

MIN_SLOTS = 16  # tokens of the longest draft that the first buffers hold


@dataclass(frozen=True)
class DraftBlocks:
    """The layers of a draft: of its first forward, and of its further steps."""

    first: tuple[Block, ...]
    further: tuple[Block, ...]


class DraftLoop:
    """Greedy drafts of one stack.

    Args:
        forward: the stack's static-shape forwards; its smallest width is 1.
        vocab: ids from here on are never proposed.
    """

    def __init__(self, forward: StaticForward, vocab: int) -> None:
        assert forward.widths[0] == 1
        stack = forward.stack
        self.forward, self.stack, self.vocab = forward, stack, vocab
        size, dtype, device = stack.weights.embedding.shape[1], stack.weights.dtype, stack.device
        self._hidden = torch.zeros(1, size, dtype=dtype, device=device)
        self._token, self._position, self._slot = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(3))
        self._choice: Graph | None = None
        self._steps: dict[tuple[int, int], Graph] = {}
        self._prepared: tuple[Block, ...] | None = None  # layers of first forwards that were captured in all widths
        self._cache_version = -1  # that the steps were captured with
        self._allot(MIN_SLOTS)

    def draft(self, ids: Tensor, gamma: int, blocks: DraftBlocks) -> tuple[list[int], list[float]]:
        """Append ids [T] and γ - 1 draft tokens to the cache; return γ tokens and their log-probabilities.

        Args:
            ids: confirmed tokens that the cache lacks, at most `forward.max_tokens`.
            gamma: γ >= 1.
            blocks: the layers to run.
        """
        start, tokens = self.stack.length, len(ids)
        end = start + tokens + gamma - 1
        attended = self.forward.reserve(start, tokens + gamma - 1)
        if gamma > self._found.shape[1]:
            self._allot(gamma)
        choice = self._choice or self._capture_choice()
        step = self._step(blocks.further, attended, start + tokens) if gamma > 1 else None
        # compiling all widths would take minutes
        if blocks.first is not self._prepared and self.forward.backend != "compiled":
            self.forward.capture_widths(blocks.first, start)
            self._prepared = blocks.first
        hidden = self.forward.run(ids, start, blocks.first)
        self._hidden.copy_(hidden[tokens - 1 : tokens])
        self._position.fill_(start + tokens - 1)
        self._slot.fill_(0)
        choice.replay()
        for _ in range(gamma - 1):
            step.replay()
        self.stack.cache.commit(end)
        found, logprobs = self._found[:, :gamma].tolist()
        return [int(token) for token in found], logprobs

    def _allot(self, slots: int) -> None:
        """Make buffers for drafts of up to this many tokens; graphs with the old ones are dropped."""
        # ids and log-probabilities, [2, slots], in the one dtype that holds both
        self._found = torch.zeros(2, slots, dtype=torch.float64, device=self.stack.device)
        self._choice = None
        self._steps.clear()

    def _make_choice(self) -> Callable[[], None]:
        """Return the choice as a function, in fused kernels if forwards run in them."""
        if self.forward.backend != "fused" or not isinstance(self.stack.weights.head, DenseLinear):
            return self._choose
        state = {"token": self._token, "position": self._position, "slot": self._slot, "found": self._found}
        fused = FusedChoice(self.stack.weights, self.vocab, **state)
        return lambda: fused(self._hidden)

    def _choose(self) -> None:
        """Choose the token after the hidden state, store it, and step to the next position."""
        logits = self.stack.logits(self._hidden)[0, : self.vocab]
        best, logprob = argmax_logprob(logits)
        self._token.copy_(best)
        self._found[0].index_copy_(0, self._slot, best.double())
        self._found[1].index_copy_(0, self._slot, logprob.double())
        self._slot.add_(1)
        self._position.add_(1)

    def _capture_choice(self) -> Graph:
        self._choice = self.forward.record(self._make_choice, lambda: self._slot.fill_(0))
        return self._choice

    def _step(self, blocks: tuple[Block, ...], attended: int, position: int) -> Graph:
        """Return the graph of a draft step that attends to a block of the cache; its first position is free."""
        if self._cache_version != self.stack.cache.version:
            self._steps.clear()
            self._cache_version = self.stack.cache.version
        key = (id(blocks), attended)
        if key not in self._steps:
            inputs = self.forward.inputs(attended)

            def make_work() -> Callable[[], None]:
                function, choose = self.forward.function(blocks, 1), self._make_choice()

                def work() -> None:
                    self._hidden.copy_(function(self._token, self._position, *inputs))
                    choose()

                return work

            def prepare() -> None:
                self._position.fill_(position)
                self._slot.fill_(0)

            self._steps[key] = self.forward.record(make_work, prepare)
        return self._steps[key]
