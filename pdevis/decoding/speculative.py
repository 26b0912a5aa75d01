"""Lossless speculative decoding: draft γ tokens, verify them in one target forward, keep what the target agrees with.

The output is the target's own: its argmax at temperature 0, in distribution above (up to rounding: a forward of several
tokens may round differently from several forwards of one token). Leviathan et al. 2023, Chen et al. 2023.

This is the whole loop. It knows token ids only, and neither loaders nor processes: `Verifier` is the target's side,
`DraftSource` the drafter's, `GammaPolicy` chooses draft lengths, and a `Round` carries what statistics, policy and
recorder need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pdevis.config import DecodeConfig
from pdevis.decoding.clock import Clock
from pdevis.decoding.draft_source import DraftSource
from pdevis.decoding.gamma import GammaPolicy, gamma_policy
from pdevis.decoding.progress import Progress
from pdevis.decoding.sampling import Sampler
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats, Round, TokenEvent


class RoundRecorder(Protocol):
    """Receives every finished round, for example to write it to a trace file."""

    def record(self, round: Round) -> None: ...


def speculative(
    verifier: Verifier,
    drafter: DraftSource,
    *,
    prompt: list[int],
    config: DecodeConfig,
    stats: DecodeStats,
    policy: GammaPolicy | None = None,
    recorder: RoundRecorder | None = None,
    ends_text: Callable[[int], bool] | None = None,
) -> Iterator[TokenEvent]:
    """Decode after `prompt` until an EOS or a limit; yield a `TokenEvent` without text for each confirmed token.

    The drafter reads the prompt when first asked for a draft, or, if concurrent, while the target does. However this
    ends, finished, closed or failed, both caches are rewound to the confirmed tokens.

    Args:
        verifier, drafter: the target, and what proposes tokens.
        prompt: token ids, fewer than the target's context holds.
        config: decoding settings with `eos_ids` set; with `overlap` the drafter drafts ahead during verification.
        stats: filled in during the generation.
        policy: chooses the draft length of each round; None: as `config.gamma` asks.
        recorder: receives every round.
        ends_text: as for `Progress`.
    """
    policy = policy or gamma_policy(config)
    progress = Progress(prompt, config, verifier.model.context_length, ends_text)
    clock = Clock(verifier.model.device, drafter.device)
    target_sampler = Sampler(config, verifier.model.device, stream=1)
    stats.prompt_tokens, stats.stop_reason = len(prompt), progress.stop_reason
    try:
        if not progress.stop_reason:
            if drafter.concurrent:
                drafter.open(prompt, config)
            verifier.open(prompt, config)
            stats.add_prefill(clock.lap())
        while not progress.stop_reason:
            space = min(progress.draft_limit, drafter.context_length - len(progress.confirmed))
            limit = min(space, verifier.draft_room(len(progress.confirmed)))
            gamma = policy.choose(limit)
            round = Round(draft_limit=limit, fallback=policy.falls_back, concurrent=drafter.concurrent)
            if gamma > 0:
                with clock.phase(round, "draft_prefill"):
                    drafter.open(progress.confirmed, config)
                with clock.phase(round, "draft"):
                    lookahead = space if config.overlap else 0
                    round.draft = drafter.draft(progress.confirmed, gamma, policy.should_continue, lookahead)
            with clock.phase(round, "verify"):
                round.verdict = verifier.verify(progress.confirmed, round.draft, target_sampler)
            events = progress.confirm(round)
            verifier.rewind_to_confirmed(progress.confirmed)
            drafter.rewind_to_confirmed(progress.confirmed)
            round.total_seconds = clock.lap()
            _report(round, stats, policy, recorder)
            with clock.paused():
                yield from events
    finally:
        verifier.release(progress.confirmed)
        drafter.release(progress.confirmed)


def _report(round: Round, stats: DecodeStats, policy: GammaPolicy, recorder: RoundRecorder | None) -> None:
    """Let all that learn from a finished round read it."""
    stats.add(round)
    policy.observe(round)
    if recorder:
        recorder.record(round)
