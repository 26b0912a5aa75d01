"""DraftService: one rank's model and `Drafter`, and the operations on them that the main process can request.

Draft-ahead (`DecodeConfig.overlap`): after a draft is sent, the ranks guess the target's bonus token and draft the next
round as if that token had been confirmed. If the target confirms exactly these tokens, the next draft is ready;
otherwise it is cancelled at the next sublayer and the caches are rewound. The tokens drafted ahead depend on the guess
only, never on the target's pending result, so that sampling stays lossless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.drafting.drafter import Drafter
from pdevis.generation import Draft
from pdevis.models.causal_lm import CausalLM
from pdevis.models.stack import DecoderStack
from pdevis.parallel.collectives import Communicator, DraftCancelled, broadcast
from pdevis.parallel.lanes import DeviceLanes

MIN_AHEAD_PROBABILITY = 0.2


@dataclass
class AheadDraft:
    """A draft for the next round, valid if the target confirms exactly the tokens `assumed`."""

    assumed: list[int]
    gamma: int
    should_continue: Callable[[float], bool] | None
    draft: Draft | None = None  # None until it is complete
    draft_seconds: float = 0.0


class DraftService:
    """The operations of one rank; every rank runs the same ones in the same order.

    Args:
        model: the drafter, or this rank's shard of it.
        communicator: connects the ranks.
        target_vocab: ids from here on are never proposed.
        head_rows: number of ids that the drafter's whole output head covers; None: its vocabulary.
        min_ahead_probability: the drafter's own probability that its draft and its guess are right, below which it does
            not draft ahead: a wasted draft slows the target down if they share memory bandwidth or a device.
    """

    def __init__(
        self,
        model: CausalLM,
        communicator: Communicator,
        *,
        target_vocab: int,
        head_rows: int | None,
        min_ahead_probability: float = MIN_AHEAD_PROBABILITY,
    ) -> None:
        self.model = model
        self.communicator = communicator
        self.target_vocab = target_vocab
        self.min_ahead_probability = min_ahead_probability
        vocab = min(head_rows or model.vocab_size, model.vocab_size)
        self.lanes = DeviceLanes(model, communicator, vocab) if isinstance(model, DecoderStack) else None
        self.configure(DraftConfig(mode="exact"))
        self.confirmed: list[int] = []
        self.config = DecodeConfig()
        self.ahead: AheadDraft | None = None
        self.idle_seconds = 0.0  # waiting for requests since the last draft
        self.operations: dict[str, Callable[..., Any]] = {
            "configure": self.configure,
            "open": self.open,
            "draft": self.draft,
            "release": self.release,
            "forward": self.forward,
            "prefill": self.prefill,
            "rewind": self.rewind,
        }

    def dispatch(self, operation: str, *arguments: Any) -> Any:
        """Run the operation of that name; any operation but "draft" discards what was drafted ahead."""
        if operation != "draft":
            self.ahead = None
        return self.operations[operation](*arguments)

    def configure(self, draft: DraftConfig, traced: bool = False) -> None:
        """Set the drafting settings, with a resolved mode, from the next generation on."""
        self.rewind(0)
        self.drafter = Drafter(
            self.model, draft, self.target_vocab, lanes=self.lanes, traced=traced, broadcast_token=self._broadcast_token
        )

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation, as `Drafter.open` does, after the end of one that was never released."""
        self.drafter.release(self.confirmed)
        self.confirmed, self.config, self.idle_seconds = list(prompt), config, 0.0
        self.drafter.open(prompt, config)

    def draft(
        self,
        added: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        """Return the next draft, and prepare to draft ahead.

        Args:
            added: tokens confirmed since the last draft.
            gamma, should_continue: as for `Drafter.draft`.
            lookahead: draft tokens that fit into this and the next round together; 0: do not draft ahead.
        """
        begin = time.perf_counter()
        self.confirmed += added
        ahead, self.ahead = self.ahead, None
        hit = ahead is not None and ahead.draft is not None and ahead.assumed == self.confirmed
        if hit:
            draft = _truncate(ahead.draft, gamma)
        else:
            self.drafter.rewind_to_confirmed(self.confirmed)
            draft = self.drafter.draft(self.confirmed, gamma, deepcopy(should_continue))  # the rule counts its tokens
        draft_seconds = ahead.draft_seconds if hit else time.perf_counter() - begin
        idle_seconds, self.idle_seconds = self.idle_seconds, 0.0
        remaining = lookahead - len(draft.ids) - 1
        if remaining > 0 and not draft.invalid and draft.ids[-1] not in (self.config.eos_ids or ()):
            self.ahead = AheadDraft([*self.confirmed, *draft.ids], min(gamma, remaining), should_continue)
        probs = None if draft.probs is None else draft.probs.cpu().numpy()  # a tensor would be sent as an open file
        used_ahead = hit if ahead else None
        return replace(draft, probs=probs, own_seconds=draft_seconds, idle_seconds=idle_seconds, ahead=used_ahead)

    def draft_ahead(self, should_cancel: Callable[[], bool] | None) -> None:
        """Draft the next round if the last draft prepared it. On rank 0 `should_cancel` is called at the exchanges."""
        ahead = self.ahead
        if ahead is None:
            return
        probability = self.drafter.confidence()
        if not probability >= self.min_ahead_probability:  # NaN if the drafter's logits are not finite
            self.ahead = None
            return
        self.communicator.cancellable, self.communicator.should_cancel = True, should_cancel
        try:
            guess, guess_probability = self.drafter.guess(ahead.assumed)
            ahead.assumed.append(guess)
            if not probability * guess_probability >= self.min_ahead_probability:
                self.ahead = None
            elif guess not in (self.config.eos_ids or ()):
                begin = time.perf_counter()
                ahead.draft = self.drafter.draft(ahead.assumed, ahead.gamma, ahead.should_continue)
                ahead.draft_seconds = time.perf_counter() - begin
        except DraftCancelled:
            pass
        finally:
            self.communicator.cancellable, self.communicator.should_cancel = False, None

    def release(self, added: list[int]) -> None:
        """End a generation, as `Drafter.release` does; `added` are the tokens confirmed since the last draft."""
        self.confirmed += added
        self.drafter.release(self.confirmed)

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> Any:
        """Append ids [T] to the cache; return logits [T, V] as a numpy array."""
        self.model.tokens = []
        tensor = torch.tensor(ids, device=self.model.device)
        if self.lanes:  # one row of logits at a time, which is what the shared buffer is sized for
            logits = torch.cat([self.lanes.logits(row) for row in self.lanes.run_layers(tensor).split(1)])
        else:
            logits = self.model.forward(tensor)
        return (logits.float() if logits.dtype == torch.bfloat16 else logits).cpu().numpy()

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        """Append ids [T] to the cache."""
        self.model.tokens = []
        self.drafter.engine.prefill(torch.tensor(ids, device=self.model.device))

    def rewind(self, length: int) -> None:
        """Drop all but the first `length` tokens of the cache."""
        self.model.tokens = []
        self.model.rewind(length)

    def _broadcast_token(self, ids: Tensor) -> Tensor:
        """Broadcast rank 0's token. A drafter without sublayer access can be cancelled only here."""
        return broadcast(self.communicator, ids)


def _truncate(draft: Draft, gamma: int) -> Draft:
    """Return the first γ tokens of a draft. Valid when sampling too, since γ does not depend on what the tokens are."""
    if len(draft.ids) <= gamma:
        return draft
    probs = None if draft.probs is None else draft.probs[:gamma]
    return replace(draft, ids=draft.ids[:gamma], probs=probs, confidences=draft.confidences[:gamma])
