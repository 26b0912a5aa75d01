"""DraftService: one rank's model and `Drafter`, and the operations on them that the decoding process asks for.

Asked to draft ahead, the ranks go on when a draft is out: they guess the token that the target will add, and draft
behind it as if it had been confirmed. If the target confirms just that, the next draft is there; else it is dropped, at
the next sublayer, and the caches are rewound. What is drafted ahead depends on the guess only, never on what the target
is about to say, so that sampling stays lossless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.drafting.drafter import Drafter
from pdevis.generation import Draft
from pdevis.models.causal_lm import CausalLM
from pdevis.models.stack import DecoderStack
from pdevis.parallel.collectives import Dropped, Link
from pdevis.parallel.lanes import DeviceLanes

AHEAD_LEAST = 0.2


@dataclass
class Ahead:
    """A draft behind a guess; `confirmed` is what the target would have to confirm."""

    confirmed: list[int]
    gamma: int
    should_continue: Callable[[float], bool] | None
    draft: Draft | None = None
    seconds: float = 0.0

    def confirmed_by(self, confirmed: list[int]) -> bool:
        return confirmed == self.confirmed


class DraftService:
    """The operations of one rank, alike on all of them.

    Args:
        model: the drafter, or this rank's share of it.
        link: to the other ranks.
        target_vocab: ids from here on are never proposed.
        head_rows: ids that the drafter's whole output head covers; None: its vocabulary.
        least: the drafter's own probability that its draft and its guess are right, below which it does not draft
            ahead: what it does slows the target down where they share memory or a device, and may be thrown away.
    """

    def __init__(
        self, model: CausalLM, link: Link, target_vocab: int, head_rows: int | None, least: float = AHEAD_LEAST
    ) -> None:
        self.least = least
        self.model = model
        self.link = link
        self.target_vocab = target_vocab
        vocab = min(head_rows or model.vocab_size, model.vocab_size)
        self.lanes = DeviceLanes(model, link, vocab) if isinstance(model, DecoderStack) else None
        self.configure(DraftConfig(mode="exact"))
        self.confirmed: list[int] = []
        self.config = DecodeConfig()
        self.ahead: Ahead | None = None
        self.idle = 0.0  # seconds without anything to do, since the last draft
        self.operations: dict[str, Callable[..., Any]] = {
            "configure": self.configure,
            "open": self.open,
            "draft": self.draft,
            "release": self.release,
            "forward": self.forward,
            "prefill": self.prefill,
            "rewind": self.rewind,
        }

    def obey(self, operation: str, *arguments: Any) -> Any:
        """Do what the decoding process asks for; anything but the next draft ends the drafting ahead."""
        if operation != "draft":
            self.ahead = None
        return self.operations[operation](*arguments)

    def configure(self, draft: DraftConfig, traced: bool = False) -> None:
        """Drafting settings with a resolved mode, from the next generation on."""
        self.model.rewind(0)
        self.model.tokens = []
        self.drafter = Drafter(
            self.model,
            draft,
            self.target_vocab,
            lanes=self.lanes,
            traced=traced,
            broadcast_token=lambda ids: self.link.share([ids], [0], ids.shape, ids)[0],
        )

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        self.drafter.release(self.confirmed)  # of a generation that was never released
        self.confirmed, self.config, self.idle = list(prompt), config, 0.0
        self.drafter.open(prompt, config)

    def draft(self, added: list[int], gamma: int, should_continue: Callable[[float], bool] | None, room: int) -> Draft:
        """The next draft. `room`: draft tokens that fit into this and the next round; 0: do not draft ahead."""
        begin = time.perf_counter()
        self.confirmed += added
        ahead, self.ahead = self.ahead, None
        hit = ahead is not None and ahead.draft is not None and ahead.confirmed_by(self.confirmed)
        if hit:
            draft = _cut(ahead.draft, gamma)
        else:
            self.drafter.rewind_to_confirmed(self.confirmed)
            draft = self.drafter.draft(self.confirmed, gamma, deepcopy(should_continue))  # a rule counts its tokens
        seconds = ahead.seconds if hit else time.perf_counter() - begin
        idle, self.idle = self.idle, 0.0
        left = room - len(draft.ids) - 1
        if left > 0 and draft.ids[-1] not in (self.config.eos_ids or ()):
            self.ahead = Ahead([*self.confirmed, *draft.ids], min(gamma, left), should_continue)
        probs = None if draft.probs is None else draft.probs.cpu().numpy()  # a tensor would travel as an open file
        return replace(draft, probs=probs, own_seconds=seconds, idle_seconds=idle, ahead=hit if ahead else None)

    def look_ahead(self, unwanted: Callable[[], bool] | None) -> None:
        """Draft behind a guess, where the last draft asked for it. `unwanted` is asked on rank 0 in between."""
        ahead = self.ahead
        if ahead is None:
            return
        likely = self.drafter.confidence()
        if likely < self.least:
            self.ahead = None
            return
        self.link.dropping, self.link.unwanted = True, unwanted
        try:
            guess, certain = self.drafter.guess(ahead.confirmed)
            ahead.confirmed.append(guess)
            if likely * certain < self.least:
                self.ahead = None
            elif guess not in (self.config.eos_ids or ()):
                begin = time.perf_counter()
                ahead.draft = self.drafter.draft(ahead.confirmed, ahead.gamma, ahead.should_continue)
                ahead.seconds = time.perf_counter() - begin
        except Dropped:
            pass
        finally:
            self.link.dropping, self.link.unwanted = False, None

    def release(self, added: list[int]) -> None:
        self.confirmed += added
        self.drafter.release(self.confirmed)

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> Any:
        """Logits [T, V] as a numpy array."""
        self.model.tokens = []
        tensor = torch.tensor(ids, device=self.model.device)
        if self.lanes:  # one row of logits at a time: that is what the board has room for
            logits = torch.cat([self.lanes.logits(row) for row in self.lanes.run_layers(tensor).split(1)])
        else:
            logits = self.model.forward(tensor)
        return (logits.float() if logits.dtype == torch.bfloat16 else logits).cpu().numpy()

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        self.model.tokens = []
        self.drafter.engine.prefill(torch.tensor(ids, device=self.model.device))

    def rewind(self, length: int) -> None:
        self.model.tokens = []
        self.model.rewind(length)


def _cut(draft: Draft, gamma: int) -> Draft:
    """The first γ tokens; how many does not depend on what they are."""
    if len(draft.ids) <= gamma:
        return draft
    probs = None if draft.probs is None else draft.probs[:gamma]
    return replace(draft, ids=draft.ids[:gamma], probs=probs, confidences=draft.confidences[:gamma])
