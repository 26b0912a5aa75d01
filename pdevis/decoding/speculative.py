"""Lossless speculative decoding: draft γ tokens, verify them in one target forward, keep what the target agrees with.

The output is the target's own: its argmax at temperature 0, in distribution above (up to rounding: a forward of several
tokens may round differently from several forwards of one). Yields a `TokenEvent` without text for each confirmed token.
"""

from __future__ import annotations

from collections.abc import Iterator

from pdevis.decoding.rounds import Clock, Progress
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.records import DecodeConfig, DecodeStats, Draft, TokenEvent
from pdevis.sampling import Sampler


def speculative(
    verifier: Verifier, drafter: Drafter, prompt: list[int], config: DecodeConfig, stats: DecodeStats
) -> Iterator[TokenEvent]:
    """Decode behind `prompt` (token ids, shorter than the target's context) until EOS or a limit; fills `stats`.

    However the generation ends, finished, closed or failed, both caches are rewound to confirmed tokens.
    """
    progress = Progress(prompt, config, verifier.model.context_length, stats)
    clock = Clock(stats, verifier.model.device, drafter.model.device)
    draws = Sampler(config, drafter.model.device, stream=0)
    judge = Sampler(config, verifier.model.device, stream=1)
    # A drafter with a shorter context than the target stops helping at its end.
    sides = (verifier, drafter) if len(prompt) < drafter.model.context_length else (verifier,)
    started: list[Verifier | Drafter] = []  # only their caches hold this prompt
    if progress.done:
        return
    try:
        with clock.phase("prefill"):
            for side in sides:
                side.start(prompt, config.reuse_prefix)
                started.append(side)
        while not progress.done:
            draft = Draft([])
            gamma = min(config.gamma, progress.room, drafter.model.context_length - len(progress.confirmed))
            if gamma > 0:
                with clock.phase("draft"):
                    draft = drafter.draft(progress.confirmed, gamma, draws, progress.eos)
            with clock.phase("verify"):
                verdict = verifier.verify(progress.confirmed, draft, judge)
            events = progress.add(draft.ids, verdict)
            stats.draft_steps += draft.steps
            stats.skipped += draft.skipped
            stats.depth += draft.depth
            for side in started:
                side.settle(progress.confirmed)
            clock.stop()
            with clock.paused():
                yield from events
    finally:
        for side in started:
            side.finish(progress.confirmed)
