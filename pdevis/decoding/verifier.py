"""Verification: one target forward over the last confirmed token and the draft, then accept or correct.

Shapes: G = draft tokens, V = the target's vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.config import DecodeConfig
from pdevis.decoding.sampling import Sampler, distribution, process, residual
from pdevis.generation import Draft, TokenLogprob, Verdict
from pdevis.models.causal_lm import CausalLM, load_prompt


class Verifier:
    """The target of one sequence; the model's cache belongs to this object."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self._is_open = False

    @torch.inference_mode()
    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation: bring the cache to the prompt without its last token."""
        load_prompt(self.model, prompt, reuse=config.reuse_prefix, read=self.model.prefill)
        self._is_open = True

    @torch.inference_mode()
    def verify(self, confirmed: list[int], draft: Draft, sampler: Sampler) -> Verdict:
        """Run one forward over G + 1 tokens, then accept or correct. An empty draft makes this plain decoding."""
        ids = torch.tensor([confirmed[-1], *draft.ids], device=self.model.device)
        raw = self.model.forward(ids)  # [G + 1, V]
        # most generations have no processors, and then need no copy of the text
        logits = process(sampler.config, [*confirmed, *draft.ids], raw) if sampler.config.processors else raw
        if sampler.config.greedy:
            verdict = accept_greedy(ids[1:], logits)
        else:
            verdict = accept_sampled(draft, distribution(logits, sampler.config), sampler)
        if sampler.config.logprobs is not None:
            written = [*draft.ids[: verdict.accepted], verdict.bonus]
            verdict.logprobs = token_logprobs(raw[: len(written)], written, sampler.config.logprobs)
        return verdict

    def draft_room(self, confirmed: int) -> int:
        """Return the length of the longest draft after some tokens that one forward verifies as plain decoding would.

        Only forwards in static shapes have a limit below the context length.
        """
        static = getattr(self.model, "static", None)
        return self.model.context_length if static is None else static.room(confirmed - 1) - 1

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """Rewind the cache to the confirmed tokens but the last, which the next forward begins with."""
        self.model.rewind(min(self.model.length, len(confirmed) - 1))
        self.model.tokens = confirmed[: self.model.length]

    def release(self, confirmed: list[int]) -> None:
        """End the generation. Does nothing if none is open: the cache then holds another prompt."""
        if self._is_open:
            self._is_open = False
            self.rewind_to_confirmed(confirmed)


def token_logprobs(logits: Tensor, ids: list[int], top: int) -> list[TokenLogprob]:
    """Return the target's own log-probability of each id, from logits [T, V] before any processing, and the best ones.

    Args:
        logits: row i gives the distribution of token i.
        ids: the T tokens.
        top: number of most probable tokens to list.
    """
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprob(logprob, tuple(zip(top_ids, values)))
        for logprob, top_ids, values in zip(chosen, best.indices.tolist(), best.values.tolist())
    ]


def accept_greedy(draft_ids: Tensor, logits: Tensor) -> Verdict:
    """Accept a token iff it is the target's argmax: no probabilities, no random numbers, one look at the device.

    Args:
        draft_ids: [G].
        logits: [G + 1, V].
    """
    best = logits.argmax(-1)
    accepted = (best[:-1] == draft_ids).long().cumprod(0).sum()
    return Verdict(*torch.cat([accepted[None], best.gather(0, accepted[None])]).tolist())


def accept_sampled(draft: Draft, p: Tensor, sampler: Sampler) -> Verdict:
    """Accept x ~ q with probability min(1, p(x) / q(x)), else sample from norm(max(0, p - q)) (Leviathan et al. 2023).

    Args:
        draft: G ids, and q [G, V'] with V' <= V: extended by zeros here.
        p: [G + 1, V] the target's distributions.
        sampler: random numbers on the target's device.
    """
    count = len(draft.ids)
    if count == 0:
        return Verdict(0, int(sampler.draw(p[0])))
    q = F.pad(draft.probs.to(p.device), (0, p.shape[-1] - draft.probs.shape[-1]))  # [G, V]
    rows, ids = torch.arange(count, device=p.device), torch.tensor(draft.ids, device=p.device)
    accepts = (sampler.uniform(count) * q[rows, ids] < p[rows, ids]).tolist()
    accepted = [*accepts, False].index(False)
    last = p[count] if accepted == count else residual(p[accepted], q[accepted])
    return Verdict(accepted, int(sampler.draw(last)))
