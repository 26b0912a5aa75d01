"""A round of drafting: γ tokens from the confirmed ones, and a cache that is right again afterwards.

The first forward of a round covers every confirmed token whose cache entries are missing or approximate, in one exact
pass when calibrating; a draft that was accepted in full so costs no forward of its own.

Shapes: T = tokens of a forward, G = draft tokens of a round, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pdevis.drafting.engine import DraftEngine, DraftStep
from pdevis.models.build import check_mode
from pdevis.models.hf import HFCausalLM
from pdevis.models.stack import CausalLM, DecoderStack
from pdevis.records import Draft, DraftConfig
from pdevis.sampling import Sampler, distribution


class Engine(Protocol):
    """Runs one drafter forward, exactly or under a rule."""

    def exact(self, ids: Tensor) -> DraftStep: ...

    def draft(self, ids: Tensor) -> DraftStep: ...


class PlainEngine:
    """A drafter without access to its sublayers: every forward is exact."""

    def __init__(self, model: HFCausalLM) -> None:
        self.model = model
        self.depth = 2 * model.model.config.get_text_config().num_hidden_layers

    def exact(self, ids: Tensor) -> DraftStep:
        return DraftStep(self.model.forward(ids)[-1], 0.0, self.depth)

    draft = exact


def resolve_mode(config: DraftConfig, model: CausalLM, tuned: str | None = None) -> str:
    """What `config.mode` becomes for this drafter; "auto" on one device is what a profile has found (`tuned`), else
    "exact" (README, "Which mode").

    Raises:
        ValueError: for skip or parallel on a model whose sublayers cannot be reached.
    """
    reachable = isinstance(model, DecoderStack)
    check_mode(config.mode, reachable)
    if config.mode != "auto":
        return config.mode
    return tuned if tuned and reachable else "exact"


class Drafter:
    """Proposes tokens for one sequence.

    Args:
        model: the drafter; its cache belongs to this object.
        config: drafting settings with a resolved mode.
        target_vocab: ids from here on are never proposed.
    """

    def __init__(self, model: CausalLM, config: DraftConfig, target_vocab: int) -> None:
        self.model = model
        self.config = config
        self.vocab = min(model.vocab_size, target_vocab)
        self.engine: Engine = DraftEngine(model, config) if isinstance(model, DecoderStack) else PlainEngine(model)
        self.approximate = config.mode != "exact"  # a draft's cache entries are
        self.redo = self.approximate and config.calibrate
        self.exact_length = 0  # entries from the front that an exact pass has written

    @torch.inference_mode()
    def start(self, prompt: list[int], reuse: bool) -> None:
        """Bring the cache to the prompt without its last token."""
        start_cache(self.model, self._known(prompt), reuse)
        self.exact_length = self.model.length

    @torch.inference_mode()
    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        sampler: Sampler,
        eos: frozenset[int] = frozenset(),
        goes_on: Callable[[float], bool] | None = None,
    ) -> Draft:
        """At most γ >= 1 tokens to follow the confirmed ones, of which at least the last is not in the cache yet.

        `goes_on` is told the probability of each token but the last, and may end the draft behind it.
        The draft ends with an EOS: nothing behind it could be used. On CPU drafting stops there; elsewhere looking
        at a token would wait for the device, so the tokens behind it are drafted and cut off (and counted in `steps`).
        """
        ids = torch.tensor(self._known(confirmed[self.model.length :]), device=self.model.device)
        chosen, probs, skipped, depth = [], [], 0.0, 0
        for drafted in range(gamma):
            if drafted == 0 and self.redo:
                step = self.engine.exact(ids)
                self.exact_length = self.model.length
            else:
                step = self.engine.draft(ids)
            logits = step.logits[: self.vocab]
            if sampler.config.greedy:
                ids = logits.argmax(-1, keepdim=True)  # stays on the device: no synchronisation inside a greedy draft
            else:
                probs.append(distribution(logits[None], sampler.config)[0])
                ids = sampler.draw(probs[-1])
            chosen.append(ids)
            skipped += step.skipped
            depth += step.depth
            if self.model.device.type == "cpu" and int(ids) in eos:
                break
            if goes_on and drafted + 1 < gamma and not goes_on(_confidence(logits, ids, probs)):
                break
        tokens = torch.cat(chosen).tolist()
        used = next((place + 1 for place, token in enumerate(tokens) if token in eos), len(tokens))
        return Draft(tokens[:used], torch.stack(probs[:used]) if probs else None, skipped, depth, len(tokens))

    def settle(self, confirmed: list[int]) -> None:
        """Rewind to what is right for the confirmed tokens, the last of which the cache never needs.

        Entries of accepted draft tokens stay where they count as exact; else the next round's first pass redoes them.
        """
        keep = min(self.model.length, self.exact_length if self.redo else len(confirmed) - 1)
        self.model.rewind(keep)
        self.model.tokens = self._known(confirmed[:keep])

    def finish(self, confirmed: list[int]) -> None:
        """Leave nothing approximate behind: the next generation may share this one's prefix."""
        self.settle(confirmed)
        if self.approximate:
            self.model.rewind(min(self.model.length, self.exact_length))

    def _known(self, ids: list[int]) -> list[int]:
        """Ids as this model can read them: a target with a larger vocabulary may write ids that it lacks."""
        last = self.model.vocab_size - 1
        return [min(token, last) for token in ids]


def _confidence(logits: Tensor, ids: Tensor, probs: list[Tensor]) -> float:
    """The probability of the token just chosen, of logits [V]: under the distribution drawn from, else the softmax."""
    return float(probs[-1][ids] if probs else (logits[ids].float() - logits.float().logsumexp(-1)).exp())


def start_cache(model: CausalLM, prompt: list[int], reuse: bool) -> None:
    """Bring a model's cache to the prompt without its last token, from its shared prefix or from nothing."""
    wanted = prompt[:-1]
    shared = 0
    if reuse:
        limit = min(len(model.tokens), len(wanted), model.length)
        shared = next((i for i in range(limit) if model.tokens[i] != wanted[i]), limit)
    model.rewind(shared)
    model.tokens = wanted[:shared]
    if wanted[shared:]:
        try:
            model.prefill(torch.tensor(wanted[shared:], device=model.device))
        except BaseException:  # some chunks may be in the cache, and nobody knows which
            model.rewind(min(shared, model.length))
            raise
