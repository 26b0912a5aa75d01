"""Synthetic acceptance: speculative decoding whose draft tokens are accepted by chance, for timing alone.

The speed of a pair at a given acceptance can so be measured without its weights. All work is real, the text means
nothing, and every result says "SYNTHETIC".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from pdevis.decoding.sampling import Sampler
from pdevis.decoding.verifier import Verifier
from pdevis.generation import Draft, Verdict
from pdevis.models.causal_lm import CausalLM

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


class SyntheticVerifier(Verifier):
    """A target whose acceptance is drawn: it does all the work of verification, but accepts whatever it computes.

    So a pair's speed at a given acceptance is measured without its weights; the text means nothing.

    Args:
        model: the target.
        acceptance: probability that a draft token is accepted, given that all before it are.
    """

    def __init__(self, model: CausalLM, acceptance: float) -> None:
        super().__init__(model)
        self.acceptance = acceptance

    def verify(self, confirmed: list[int], draft: Draft, sampler: Sampler) -> Verdict:
        verdict = super().verify(confirmed, draft, sampler)
        random = Random(len(confirmed))  # the same draws in each run
        accepts = [random.random() < self.acceptance for _ in draft.ids]
        return Verdict([*accepts, False].index(False), verdict.bonus)


@contextmanager
def drawn_acceptance(pair: SpeculativePair, acceptance: float) -> Iterator[None]:
    """Let a pair's speculative decoding draw its acceptance within the block."""
    pair.make_verifier = partial(SyntheticVerifier, acceptance=acceptance)
    try:
        yield
    finally:
        pair.make_verifier = Verifier
