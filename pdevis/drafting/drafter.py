"""`Drafter`: drafts of γ tokens in this process, and a KV cache that is exact again after each round.

The first forward of a round covers every confirmed token whose cache entries are missing or approximate, in one exact
pass when calibrating; so a draft that was accepted in full costs no forward of its own.

Shapes: T = tokens of a forward, G = draft tokens of a round, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.sampling import Sampler, distribution, process
from pdevis.drafting.draft_loop import DraftBlocks, DraftLoop
from pdevis.drafting.engine import DraftEngine, DraftStep, Engine, LaneExecutor, PlainEngine
from pdevis.generation import Draft
from pdevis.models.causal_lm import CausalLM, argmax_logprob, load_prompt
from pdevis.models.stack import DecoderStack


class Drafter:
    """Proposes tokens for one sequence; a `DraftSource` (decoding/draft_source.py) that does not draft ahead.

    Args:
        model: the drafter; its cache belongs to this object.
        config: drafting settings with a resolved mode.
        target_vocab: ids from here on are never proposed.
        lanes: as for `DraftEngine`.
        traced: store the layer similarities of exact forwards in each draft.
        broadcast_token: as for `PlainEngine`.
    """

    concurrent = False

    def __init__(
        self,
        model: CausalLM,
        config: DraftConfig,
        target_vocab: int,
        *,
        lanes: LaneExecutor | None = None,
        traced: bool = False,
        broadcast_token: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.vocab, self.target_vocab = min(model.vocab_size, target_vocab), target_vocab
        has_sublayers = isinstance(model, DecoderStack)
        self.traced = traced and has_sublayers
        self.engine: Engine = (
            DraftEngine(model, config, lanes) if has_sublayers else PlainEngine(model, broadcast_token)
        )
        self.approximate = config.mode != "exact"  # drafts leave approximate cache entries
        self.recalibrates = self.approximate and config.calibrate
        self.exact_prefix = 0  # cache entries from the start that an exact pass has written
        self.sampler = Sampler(DecodeConfig(), model.device)
        self.eos: frozenset[int] = frozenset()
        self._is_open = False
        self._is_broken = False  # until the end of the generation, no draft is possible
        self._logprobs: list[Tensor] = []  # log-probabilities [1] of the last draft's tokens

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @torch.inference_mode()
    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation: bring the cache to the prompt without its last token, unless one is open already."""
        if self._is_open:
            return
        self.sampler = Sampler(config, self.model.device, stream=0)
        self.eos = frozenset(config.eos_ids or ())
        load_prompt(self.model, self._readable(prompt), reuse=config.reuse_prefix, read=self.engine.prefill)
        self.exact_prefix = self.model.length
        self._is_open, self._is_broken = True, False

    @torch.inference_mode()
    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        """Propose at most γ >= 1 tokens to follow the confirmed ones, the last of which is not in the cache yet.

        A draft ends at an EOS: nothing after it could be used. On CPU drafting stops there; elsewhere looking at a
        token would wait for the device, so the tokens after it are drafted and cut off (and counted in `steps`).
        `lookahead` must be 0: drafting ahead needs a separate process.
        """
        assert lookahead == 0, "drafting ahead needs a separate process"
        if self._is_broken:
            return Draft(invalid=True)
        if self.traced:
            self.engine.steps, self.engine.passes = 0, []
        ids = torch.tensor(self._readable(confirmed[self.model.length :]), device=self.model.device)
        draft, chosen, probs = Draft(), [], []
        if (
            self._takes_argmax
            and not should_continue
            and (blocks := self.engine.draft_blocks(exact_first=self.recalibrates))
        ):
            return self._draft_in_loop(draft, ids, gamma, blocks)
        self._logprobs = []
        on_cpu = self.model.device.type == "cpu"
        for index in range(gamma):
            step = self._first_step(ids) if index == 0 else self.engine.draft(ids)
            q, ids, logprob = self._choose(step, confirmed, chosen)
            probs += [] if q is None else [q]
            ids = self.engine.broadcast_token(ids)
            chosen.append(ids)
            self._logprobs.append(logprob)
            draft.skipped += step.skipped
            draft.depth += step.depth
            if on_cpu and (int(ids) in self.eos or not isfinite(float(logprob))):
                break
            if should_continue and index + 1 < gamma:
                draft.confidences.append(float(logprob.exp()))
                if not (isfinite(draft.confidences[-1]) and should_continue(draft.confidences[-1])):
                    break
        self._finish(draft, torch.cat(chosen).tolist(), probs)
        return draft

    def _draft_in_loop(self, draft: Draft, ids: Tensor, gamma: int, blocks: DraftBlocks) -> Draft:
        """Make a greedy draft in static shapes, which needs no look from the host before its end."""
        forward, engine = self.model.static, self.engine
        if self.vocab not in forward.loops:
            forward.loops[self.vocab] = DraftLoop(forward, self.vocab)
        loop = forward.loops[self.vocab]
        engine.broadcast_token(ids[:1])  # other processes may cancel a draft here, but not within it
        extra = max(0, len(ids) - forward.max_tokens)  # confirmed tokens of many plain rounds
        if extra:
            engine.prefill(ids[:extra])
        tokens, logprobs = loop.draft(ids[extra:], gamma, blocks)
        self._logprobs = [torch.tensor(logprobs)]
        further = gamma - 1 if self.recalibrates else gamma
        if self.recalibrates:
            self.exact_prefix = self.model.length - further
        draft.skipped = engine.schedule.skipped * further
        draft.depth = engine.schedule.depth * further + 2 * engine.layers * (gamma - further)
        self._finish(draft, tokens, [])
        return draft

    @property
    def _takes_argmax(self) -> bool:
        """True if the next token is the argmax of the logits as they are."""
        return self.sampler.config.greedy and not self.sampler.config.processors

    def _choose(
        self, step: DraftStep, confirmed: list[int], drafted: list[Tensor]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Choose the next token; return q [V] (None if greedy), the token [1] and its log-probability [1]."""
        if self._takes_argmax:
            return None, *step.argmax(self.vocab)  # stays on the device: no synchronization in a greedy draft
        logits = step.logits[None, : self.vocab]
        if self.sampler.config.processors:  # they may name any id of the target
            whole = F.pad(logits, (0, self.target_vocab - self.vocab), value=-torch.inf)
            logits = process(self.sampler.config, [*confirmed, *map(int, drafted)], whole)[:, : self.vocab]
        return (None, *argmax_logprob(logits[0])) if self.sampler.config.greedy else self._sample(logits)

    def _sample(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token from logits [1, V]; return q [V], the token [1] and its log-probability [1].

        Logits that are not finite give any token, with log-probability NaN: no look at them waits for the device.
        """
        finite = logits.amax().isfinite()
        q = distribution(logits.where(finite, 0.0), self.sampler.config)[0]
        ids = self.sampler.draw(q)
        return q, ids, q[ids].log().where(finite, float("nan"))

    def _finish(self, draft: Draft, tokens: list[int], probs: list[Tensor]) -> None:
        """Set the tokens of a draft: up to an EOS, and before the first one with logits that are not finite."""
        used = next((index + 1 for index, token in enumerate(tokens) if token in self.eos), len(tokens))
        finite = torch.cat(self._logprobs).isfinite().tolist()
        valid = finite.index(False) if False in finite[:used] else used
        draft.ids, draft.steps, draft.invalid = tokens[:valid], len(tokens), valid < used
        draft.confidences = draft.confidences[:valid]
        draft.probs = torch.stack(probs[:valid]) if probs[:valid] else None
        draft.passes = self.engine.passes if self.traced else []
        # Not finite after confirmed tokens: these stay in the text, and so does the fault.
        self._is_broken = draft.invalid and valid == 0

    def confidence(self) -> float:
        """Return the drafter's probability that all tokens of its last draft are right.

        1 when sampling: there the probability of a token says little about its acceptance.
        """
        return float(torch.cat(self._logprobs).sum().exp()) if self.sampler.config.greedy else 1.0

    @torch.inference_mode()
    def guess(self, confirmed: list[int]) -> tuple[int, float]:
        """Guess the bonus token, assuming that the target accepts the whole draft; return it and its probability.

        Brings the cache to all of `confirmed`, which ends with the draft; exactly if drafts are approximate.
        """
        if self.recalibrates:
            self.model.rewind(min(self.model.length, self.exact_prefix))
        ids = torch.tensor(self._readable(confirmed[self.model.length :]), device=self.model.device)
        step = self._first_step(ids)
        if self.sampler.config.greedy:
            _, ids, logprob = self._choose(step, confirmed, [])
        else:
            ids, logprob = step.argmax(self.vocab)
        return int(self.engine.broadcast_token(ids)), float(logprob.exp())

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """Rewind to the entries that are right for the confirmed tokens, the last of which the cache never needs.

        Entries of accepted draft tokens stay if they count as exact; else the next round's first pass recomputes them.
        """
        if not self._is_open:
            return
        keep = min(self.model.length, len(confirmed) - 1)
        if self.recalibrates:
            keep = self.exact_prefix = min(keep, self.exact_prefix)
        self.model.rewind(keep)
        self.model.tokens = self._readable(confirmed[:keep])

    def release(self, confirmed: list[int]) -> None:
        """End the generation and drop approximate cache entries, so that the next one can reuse the prefix."""
        if not self._is_open:
            return
        self.rewind_to_confirmed(confirmed)
        if self.approximate:
            self.model.rewind(min(self.model.length, self.exact_prefix))
        if self._is_broken:  # the next generation must not reuse these entries
            self.model.rewind(0)
            self.model.tokens = []
        self._is_open = False

    def _first_step(self, ids: Tensor) -> DraftStep:
        """Run the forward that begins a round: an exact one when calibrating."""
        if not self.recalibrates:
            return self.engine.draft(ids)
        step = self.engine.exact(ids)
        self.exact_prefix = self.model.length
        return step

    def _readable(self, ids: list[int]) -> list[int]:
        """Replace ids that this model lacks: a target with a larger vocabulary may write them."""
        last = self.model.vocab_size - 1
        return [min(token, last) for token in ids]
