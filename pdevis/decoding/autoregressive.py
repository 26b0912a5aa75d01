"""Plain decoding of one model, through the same verification step as speculative decoding: every draft is empty."""

from __future__ import annotations

from collections.abc import Iterator

from pdevis.config import DecodeConfig
from pdevis.decoding.progress import Clock, Progress
from pdevis.decoding.sampling import Sampler
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats, Draft, TokenEvent


def autoregressive(
    verifier: Verifier, prompt: list[int], config: DecodeConfig, stats: DecodeStats
) -> Iterator[TokenEvent]:
    """Decode behind `prompt` (token ids, shorter than the model's context) one token a round; fills `stats`."""
    progress = Progress(prompt, config, verifier.model.context_length, stats)
    clock = Clock(stats, verifier.model.device)
    target_sampler = Sampler(config, verifier.model.device, stream=1)
    started = False
    if progress.done:
        return
    try:
        with clock.phase("prefill"):
            verifier.start(prompt, config.reuse_prefix)
            started = True
        while not progress.done:
            with clock.phase("verify"):
                verdict = verifier.verify(progress.confirmed, Draft([]), target_sampler)
            events = progress.add([], verdict)
            verifier.rewind_to_confirmed(progress.confirmed)
            clock.stop()
            with clock.paused():
                yield from events
    finally:
        if started:
            verifier.release(progress.confirmed)
