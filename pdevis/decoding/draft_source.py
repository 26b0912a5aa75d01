"""`DraftSource`, the interface of a drafter as the decode loop sees it.

`Drafter` (drafting/drafter.py) implements it in this process, `RemoteDrafter` (parallel/remote.py) in worker processes,
`NoDrafts` (autoregressive.py) not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from pdevis.config import DecodeConfig
from pdevis.generation import Draft


class DraftSource(Protocol):
    """Proposes tokens for one sequence, which the target then verifies."""

    concurrent: bool  # works while the caller does; else `open` and `draft` return when all is done

    @property
    def device(self) -> torch.device:
        """Device whose work has to be awaited when time is measured."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that the drafter's context holds; 0 for a source that never drafts."""
        ...

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation with these token ids. Does nothing if it is open already. `eos_ids` must be set."""
        ...

    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        """Propose at most γ >= 1 tokens to follow the confirmed ones.

        Args:
            confirmed: token ids of prompt and text so far.
            gamma: upper limit of the draft length.
            should_continue: called with the drafter's probability of each token but the last; False ends the draft.
            lookahead: draft tokens that this round and the next can use together; 0: draft nothing ahead.
        """
        ...

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """Drop the cache entries of rejected tokens. Does nothing if no generation is open."""
        ...

    def release(self, confirmed: list[int]) -> None:
        """End the generation; the cache keeps exact entries only. Does nothing if no generation is open."""
        ...
