"""How many of its tokens a drafting rule gets accepted, and in what time, on text that the target has written.

The target's greedy text is known, so a draft can be judged without the target: the rounds of `rehearse` are those of
speculative decoding, drafter, caches and calibration included, with the verification looked up.

Shapes: T = tokens of a text, L = layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.drafting.divergence import similarity
from pdevis.drafting.drafter import Drafter
from pdevis.tune.timing import now

if TYPE_CHECKING:
    from pdevis.models.causal_lm import CausalLM
    from pdevis.models.stack import DecoderStack

DRAFTED = 8  # tokens of a rehearsed draft


@dataclass
class Rehearsal:
    """What the rounds of one drafting rule have shown, over all texts.

    `tested[i]` counts the drafts whose tokens before position i were right, `passed[i]` those right at i too. A round's
    first step reads all tokens confirmed since the last one, and takes longer than the next ones.
    """

    draft: DraftConfig
    tested: list[int] = field(default_factory=lambda: [0] * DRAFTED)
    passed: list[int] = field(default_factory=lambda: [0] * DRAFTED)
    first_seconds: list[float] = field(default_factory=list)
    next_seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # passed over tested, by text
    skipped: float = 0.0
    depth: int = 0
    steps: int = 0


def rehearse(rehearsal: Rehearsal, model: CausalLM, target_vocab: int, prompt: Sequence[int], text: list[int]) -> None:
    """Draft `text` (ids of the target's, behind `prompt`) round by round, and add up what happens."""
    drafter = Drafter(model, rehearsal.draft, target_vocab)
    stamps: list[float] = []

    def go_on(confidence: float) -> bool:
        stamps.append(now(model.device))
        return True

    drafter.open(list(prompt), DecodeConfig())
    done = 0
    before = sum(rehearsal.tested), sum(rehearsal.passed)
    try:
        while done < len(text):
            confirmed = [*prompt, *text[:done]]
            wanted = text[done : done + DRAFTED]
            stamps[:] = [now(model.device)]
            draft = drafter.draft(confirmed, len(wanted), go_on)
            stamps.append(now(model.device))
            right = [ours == theirs for ours, theirs in zip(draft.ids, wanted, strict=True)]
            accepted = [*right, False].index(False)
            for place in range(min(accepted + 1, len(wanted))):
                rehearsal.tested[place] += 1
                rehearsal.passed[place] += place < accepted
            steps = [after - before for before, after in pairwise(stamps)]
            rehearsal.first_seconds.append(steps[0])
            rehearsal.next_seconds += steps[1:]
            rehearsal.skipped += draft.skipped
            rehearsal.depth += draft.depth
            rehearsal.steps += draft.steps
            done += accepted + 1
            drafter.rewind_to_confirmed([*prompt, *text[:done]])
        tested, passed = sum(rehearsal.tested) - before[0], sum(rehearsal.passed) - before[1]
        rehearsal.shares.append(passed / tested)
    finally:
        model.rewind(0)
        model.tokens = []


@torch.inference_mode()
def divergences(stack: DecoderStack, ids: Sequence[int]) -> list[float]:
    """δ of each layer, 1 - cos(h_l, h_(l-1)), averaged over the tokens of ids: [L]."""
    stack.rewind(0)
    trace: list[torch.Tensor] = []
    known = [min(token, stack.vocab_size - 1) for token in ids]
    stack.run_layers(torch.tensor(known, device=stack.device), trace)
    stack.rewind(0)
    return [1 - float(similarity(new, old).mean()) for old, new in pairwise(trace)]
