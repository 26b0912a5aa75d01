"""Lossless speculative decoding: draft γ tokens, verify them in one target forward, keep what the target agrees with.

The output is the target's own: its argmax at temperature 0, in distribution above (up to rounding: a forward of several
tokens may round differently from several forwards of one). Yields a `TokenEvent` without text for each confirmed token.
"""

from __future__ import annotations

from collections.abc import Iterator

from pdevis.config import DecodeConfig
from pdevis.decoding.gamma import GammaPolicy, RoundTimes, gamma_policy
from pdevis.decoding.progress import Clock, Elapsed, Progress
from pdevis.decoding.sampling import Sampler
from pdevis.decoding.tracing import Tracer
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats, Draft, TokenEvent


def speculative(
    verifier: Verifier,
    drafter: Drafter,
    prompt: list[int],
    config: DecodeConfig,
    stats: DecodeStats,
    policy: GammaPolicy | None = None,
    tracer: Tracer | None = None,
) -> Iterator[TokenEvent]:
    """Decode behind `prompt` (token ids, shorter than the target's context) until EOS or a limit; fills `stats`.

    `policy` decides the draft lengths; None: as `config.gamma` says. The drafter reads the prompt when it is first
    asked for a draft, or, in a process of its own, while the target does; with `config.overlap` it then goes on
    drafting while the target verifies. However the generation ends, finished, closed or failed, both caches are
    rewound to confirmed tokens. `tracer` is told of every round.
    """
    policy = policy or gamma_policy(config)
    progress = Progress(prompt, config, verifier.model.context_length, stats)
    clock = Clock(stats, verifier.model.device, drafter.model.device)
    target_sampler = Sampler(config, verifier.model.device, stream=1)
    started: list[Verifier | Drafter] = []  # only their caches hold this prompt
    if progress.done:
        return
    try:
        with clock.phase("prefill"):
            if drafter.concurrent:
                drafter.start(prompt, config)
                started.append(drafter)
            verifier.start(prompt, config.reuse_prefix)
            started.append(verifier)
        while not progress.done:
            draft, starting, drafting = Draft([]), Elapsed(), Elapsed()
            # A drafter with a shorter context than the target stops helping at its end.
            limit = min(progress.room, drafter.model.context_length - len(progress.confirmed))
            gamma = policy.choose(limit) if limit > 0 else 0
            if gamma > 0:
                if drafter not in started:
                    with clock.phase("prefill") as starting:
                        drafter.start(progress.confirmed, config)
                        started.append(drafter)
                with clock.phase("draft") as drafting:
                    should_continue = policy.rule.should_continue if policy.rule else None
                    room = limit if config.overlap else 0
                    draft = drafter.draft(progress.confirmed, gamma, should_continue, room)
            with clock.phase("verify") as verifying:
                verdict = verifier.verify(progress.confirmed, draft, target_sampler)
            events = progress.add(draft.ids, verdict)
            stats.draft_steps += draft.steps
            stats.skipped += draft.skipped
            stats.depth += draft.depth
            stats.ahead_rounds += draft.ahead is True
            stats.ahead_dropped += draft.ahead is False
            stats.drafter_idle_seconds += draft.idle_seconds if drafter.concurrent else verifying.seconds
            if tracer:
                tracer.round(draft, verdict.accepted, drafting.seconds, verifying.seconds)
            if limit > 0:
                stats.fallback_rounds += policy.falls_back
                own = drafting.seconds if draft.seconds is None else draft.seconds
                policy.observe(draft, verdict.accepted, RoundTimes(own, verifying.seconds, starting.seconds))
            for side in started:
                side.rewind_to_confirmed(progress.confirmed)
            clock.stop()
            with clock.paused():
                yield from events
    finally:
        for side in started:
            side.release(progress.confirmed)
