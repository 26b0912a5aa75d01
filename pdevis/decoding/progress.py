"""Confirmed tokens of one generation and its end: at an EOS, a stop string, a length limit, the end of the context."""

from __future__ import annotations

from collections.abc import Callable

from pdevis.config import DecodeConfig
from pdevis.generation import Round, StopReason, TokenEvent


class Progress:
    """State of one generation: the tokens confirmed so far and its limits.

    Args:
        prompt: token ids, at least one.
        config: `eos_ids` must be set.
        context_length: of the target; the text never outgrows it.
        ends_text: called with each new token; True if it completes a stop string.
    """

    def __init__(
        self,
        prompt: list[int],
        config: DecodeConfig,
        context_length: int,
        ends_text: Callable[[int], bool] | None = None,
    ) -> None:
        self.confirmed = list(prompt)
        self.rounds = 0
        self.stop_reason: StopReason | None = None
        self._eos = frozenset(config.eos_ids or ())
        self._ends_text = ends_text
        limit = len(prompt) + config.max_new_tokens
        self._end = min(limit, context_length)
        self._reason_at_end: StopReason = "length" if self._end == limit else "context"
        if self._end <= len(prompt):
            self.stop_reason = self._reason_at_end

    @property
    def draft_limit(self) -> int:
        """Draft tokens that this round can use: the target adds one token itself."""
        return self._end - len(self.confirmed) - 1

    def confirm(self, round: Round) -> list[TokenEvent]:
        """Add a round's accepted tokens and its bonus token, up to the first that ends the text; return their events.

        Sets `round.confirmed` and `round.stop_reason`.
        """
        accepted, logprobs = round.verdict.accepted, round.verdict.logprobs
        events: list[TokenEvent] = []
        for index, token in enumerate([*round.draft.ids[:accepted], round.verdict.bonus]):
            source = "draft" if index < accepted else "target"
            logprob = logprobs[index] if logprobs else None
            events.append(TokenEvent(id=token, text="", source=source, round=self.rounds, logprob=logprob))
            if token in self._eos:
                self.stop_reason = "eos"
            elif self._ends_text and self._ends_text(token):
                self.stop_reason = "stop"
            if self.stop_reason:
                break
        round.confirmed = [event.id for event in events]
        self.confirmed += round.confirmed
        self.rounds += 1
        if self.stop_reason is None and len(self.confirmed) >= self._end:
            self.stop_reason = self._reason_at_end
        round.stop_reason = self.stop_reason
        return events
