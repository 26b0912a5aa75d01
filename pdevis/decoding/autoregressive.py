"""Plain decoding of one model: the speculative decode loop with a source that never drafts, so every round is plain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pdevis.config import DecodeConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats, Draft, TokenEvent


class NoDrafts:
    """A `DraftSource` without a model: its context holds nothing, so it is never asked for a draft."""

    concurrent = True  # it has no idle time
    device = torch.device("cpu")
    context_length = 0

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        pass

    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        return Draft()

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        pass

    def release(self, confirmed: list[int]) -> None:
        pass


def autoregressive(
    verifier: Verifier,
    prompt: list[int],
    *,
    config: DecodeConfig,
    stats: DecodeStats,
    ends_text: Callable[[int], bool] | None = None,
) -> Iterator[TokenEvent]:
    """Decode one token per round after `prompt` (token ids, shorter than the model's context); fills `stats`."""
    return speculative(verifier, NoDrafts(), prompt=prompt, config=config, stats=stats, ends_text=ends_text)
