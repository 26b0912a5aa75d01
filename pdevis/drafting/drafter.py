"""A round of drafting: γ tokens from the confirmed ones, and a cache that is right again afterwards.

The first forward of a round covers every confirmed token whose cache entries are missing or approximate, in one exact
pass when calibrating; a draft that was accepted in full so costs no forward of its own.

Shapes: T = tokens of a forward, G = draft tokens of a round, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.sampling import Sampler, distribution
from pdevis.drafting.engine import DraftEngine, DraftStep, LaneExecutor, argmax_logprob
from pdevis.drafting.schedule import check_mode
from pdevis.generation import Draft
from pdevis.models.causal_lm import CausalLM, load_prompt
from pdevis.models.hf import HFCausalLM
from pdevis.models.stack import DecoderStack


class Engine(Protocol):
    """Runs one drafter forward, exactly or under a rule."""

    def exact(self, ids: Tensor) -> DraftStep: ...

    def draft(self, ids: Tensor) -> DraftStep: ...

    def read(self, ids: Tensor) -> None: ...

    def broadcast_token(self, ids: Tensor) -> Tensor: ...


class PlainEngine:
    """A drafter without access to its sublayers: every forward is exact.

    Args:
        model: the drafter.
        broadcast_token: shares the first process's token with all processes of the drafter; None: there is only one.
    """

    def __init__(self, model: HFCausalLM, broadcast_token: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model
        self.broadcast_token = broadcast_token or (lambda ids: ids)
        self.read = model.prefill
        self.depth = 2 * model.model.config.get_text_config().num_hidden_layers

    def exact(self, ids: Tensor) -> DraftStep:
        return DraftStep(self.model.forward(ids)[-1:], 0.0, self.depth, self)

    draft = exact

    def logits(self, h: Tensor) -> Tensor:
        return h  # a forward brings them already

    def best(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        return argmax_logprob(h[0, :vocab])


def resolve_rule(
    config: DraftConfig, has_sublayer_access: bool, tuned: str | None = None, devices: int = 1, cut: bool = False
) -> DraftConfig:
    """What settings with the mode "auto" become for a drafter whose sublayers are `has_sublayer_access`, or not.

    "auto" is parallel on several devices, with one MLP at a time where those are `cut` between the devices: more bring
    nothing there and cost acceptance (docs/performance.md). On one device it is what a profile has found (`tuned`),
    else "exact" (README, "Which mode").

    Raises:
        ValueError: for skip or parallel on a model whose sublayers cannot be reached.
    """
    check_mode(config.mode, has_sublayer_access)
    if config.mode != "auto":
        return config
    if devices > 1:
        lanes = config.mlp_window or (1 if cut else None)
        return replace(config, mode="parallel", mlp_window=lanes)
    return replace(config, mode=tuned if tuned and has_sublayer_access else "exact")


class Drafter:
    """Proposes tokens for one sequence.

    Args:
        model: the drafter; its cache belongs to this object.
        config: drafting settings with a resolved mode.
        target_vocab: ids from here on are never proposed.
        lanes: as for `DraftEngine`.
        traced: keep in each draft what its exact passes saw.
        broadcast_token: as for `PlainEngine`; `lanes` have their own.
    """

    concurrent = False  # whether it works while the caller does

    def __init__(
        self,
        model: CausalLM,
        config: DraftConfig,
        target_vocab: int,
        lanes: LaneExecutor | None = None,
        traced: bool = False,
        broadcast_token: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.vocab = min(model.vocab_size, target_vocab)
        stack = isinstance(model, DecoderStack)
        self.traced = traced and stack
        self.engine: Engine = DraftEngine(model, config, lanes) if stack else PlainEngine(model, broadcast_token)
        self.approximate = config.mode != "exact"  # a draft's cache entries are
        self.recalibrates = self.approximate and config.calibrate
        self.exact_prefix = 0  # entries from the front that an exact pass has written
        self.sampler = Sampler(DecodeConfig(), model.device)
        self.eos: frozenset[int] = frozenset()
        self._logprobs: list[Tensor] = []  # log-probabilities [1] of the last draft's tokens

    @torch.inference_mode()
    def start(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation: bring the cache to the prompt without its last token. `eos_ids` must be set."""
        self.sampler = Sampler(config, self.model.device, stream=0)
        self.eos = frozenset(config.eos_ids or ())
        load_prompt(self.model, self._known(prompt), config.reuse_prefix, self.engine.read)
        self.exact_prefix = self.model.length

    @torch.inference_mode()
    def draft(
        self, confirmed: list[int], gamma: int, should_continue: Callable[[float], bool] | None = None, room: int = 0
    ) -> Draft:
        """At most γ >= 1 tokens to follow the confirmed ones, of which at least the last is not in the cache yet.

        `should_continue` is told the probability of each token but the last, and may end the draft behind it.
        The draft ends with an EOS: nothing behind it could be used. On CPU drafting stops there; elsewhere looking
        at a token would wait for the device, so the tokens behind it are drafted and cut off (and counted in `steps`).
        """
        assert room == 0, "drafting ahead takes a process of its own"
        sampler, eos = self.sampler, self.eos
        if self.traced:
            self.engine.steps, self.engine.passes = 0, []
        ids = torch.tensor(self._known(confirmed[self.model.length :]), device=self.model.device)
        chosen, probs, confidences, skipped, depth = [], [], [], 0.0, 0
        self._logprobs = []
        for drafted in range(gamma):
            if drafted == 0 and self.recalibrates:
                step = self.engine.exact(ids)
                self.exact_prefix = self.model.length
            else:
                step = self.engine.draft(ids)
            if sampler.config.greedy:
                ids, certain = step.best(self.vocab)  # stays on the device: no synchronisation inside a greedy draft
            else:
                probs.append(distribution(step.logits[None, : self.vocab], sampler.config)[0])
                ids = sampler.draw(probs[-1])
            ids = self.engine.broadcast_token(ids)
            chosen.append(ids)
            self._logprobs.append(probs[-1][ids].log() if probs else certain)
            skipped += step.skipped
            depth += step.depth
            if self.model.device.type == "cpu" and int(ids) in eos:
                break
            if should_continue and drafted + 1 < gamma:
                confidences.append(float(self._logprobs[-1].exp()))
                if not should_continue(confidences[-1]):
                    break
        tokens = torch.cat(chosen).tolist()
        used = next((place + 1 for place, token in enumerate(tokens) if token in eos), len(tokens))
        passes = self.engine.passes if self.traced else []
        drawn_from = torch.stack(probs[:used]) if probs else None
        return Draft(tokens[:used], drawn_from, skipped, depth, len(tokens), confidences, passes=passes)

    def confidence(self) -> float:
        """The drafter's own probability that all tokens of its last draft are right; 1 when sampling, where the
        probability of a token says little about its acceptance."""
        return float(torch.cat(self._logprobs).sum().exp()) if self.sampler.config.greedy else 1.0

    @torch.inference_mode()
    def guess(self, confirmed: list[int]) -> tuple[int, float]:
        """What the drafter itself would write behind its own draft, taken for confirmed: the target's likeliest token,
        and its probability.

        Brings the cache to all of `confirmed`; exactly where drafts are approximate.
        """
        if self.recalibrates:
            self.model.rewind(min(self.model.length, self.exact_prefix))
        ids = torch.tensor(self._known(confirmed[self.model.length :]), device=self.model.device)
        step = self.engine.exact(ids) if self.recalibrates else self.engine.draft(ids)
        if self.recalibrates:
            self.exact_prefix = self.model.length
        ids, certain = step.best(self.vocab)
        return int(self.engine.broadcast_token(ids)), float(certain.exp())

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """Rewind to what is right for the confirmed tokens, the last of which the cache never needs.

        Entries of accepted draft tokens stay where they count as exact; else the next round's first pass redoes them.
        """
        keep = min(self.model.length, len(confirmed) - 1)
        if self.recalibrates:
            keep = self.exact_prefix = min(keep, self.exact_prefix)
        self.model.rewind(keep)
        self.model.tokens = self._known(confirmed[:keep])

    def release(self, confirmed: list[int]) -> None:
        """Leave nothing approximate behind: the next generation may share this one's prefix."""
        self.rewind_to_confirmed(confirmed)
        if self.approximate:
            self.model.rewind(min(self.model.length, self.exact_prefix))

    def _known(self, ids: list[int]) -> list[int]:
        """Ids as this model can read them: a target with a larger vocabulary may write ids that it lacks."""
        last = self.model.vocab_size - 1
        return [min(token, last) for token in ids]
