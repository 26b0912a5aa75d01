"""What every decode loop shares: where a generation stands, when it ends, and how its time is taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pdevis.config import DecodeConfig
from pdevis.generation import DecodeStats, TokenEvent, Verdict


class Progress:
    """The confirmed tokens of one generation, its limits and its statistics.

    Args:
        prompt: token ids, at least one.
        config: `eos_ids` must be set.
        context_length: of the target; the text never outgrows it.
        stats: filled in as the generation goes on.
    """

    def __init__(self, prompt: list[int], config: DecodeConfig, context_length: int, stats: DecodeStats) -> None:
        self.confirmed = list(prompt)
        self.stats = stats
        self.eos = frozenset(config.eos_ids or ())
        self.end = min(len(prompt) + config.max_new_tokens, context_length)
        self.at_end = "length" if self.end == len(prompt) + config.max_new_tokens else "context"
        stats.prompt_tokens = len(prompt)
        if self.end <= len(prompt):
            stats.stop_reason = self.at_end

    @property
    def done(self) -> bool:
        return self.stats.stop_reason is not None

    @property
    def room(self) -> int:
        """Draft tokens that this round can use: the target adds one token itself."""
        return self.end - len(self.confirmed) - 1

    def add(self, drafted: list[int], verdict: Verdict) -> list[TokenEvent]:
        """Confirm a round's tokens, up to the first EOS; returns their events."""
        stats = self.stats
        number = stats.rounds
        events: list[TokenEvent] = []
        for place, token in enumerate([*drafted[: verdict.accepted], verdict.bonus]):
            events.append(TokenEvent(token, "", "draft" if place < verdict.accepted else "target", number))
            if token in self.eos:
                stats.stop_reason = "eos"
                break
        self.confirmed += [event.id for event in events]
        stats.rounds += 1
        stats.new_tokens += len(events)
        stats.drafted += len(drafted)
        stats.accepted += sum(event.source == "draft" for event in events)
        stats.accept_lengths.append(len(events))
        stats.draft_lengths.append(len(drafted))
        if stats.stop_reason is None and len(self.confirmed) >= self.end:
            stats.stop_reason = self.at_end
        return events


@dataclass
class Elapsed:
    """The length of one phase."""

    seconds: float = 0.0


class Clock:
    """Seconds by phase, with every device in use synchronised at both ends of each."""

    def __init__(self, stats: DecodeStats, *devices: torch.device) -> None:
        self.stats = stats
        self.devices = {device for device in devices if device.type == "cuda"}
        self.started = self._now()
        self.outside = 0.0  # spent by the consumer between two events

    @contextmanager
    def phase(self, name: str) -> Iterator[Elapsed]:
        """Add what happens inside to `stats.<name>_seconds`; what is yielded says afterwards how long it took."""
        spent, begin = Elapsed(), self._now()
        try:
            yield spent
        finally:
            spent.seconds = self._now() - begin
            field = f"{name}_seconds"
            setattr(self.stats, field, getattr(self.stats, field) + spent.seconds)
            self.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The consumer's own time (printing, say) is not decoding time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.outside += time.perf_counter() - begin

    def stop(self) -> None:
        self.stats.total_seconds = self._now() - self.started - self.outside

    def _now(self) -> float:
        for device in self.devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()
