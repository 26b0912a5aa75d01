"""Acceptance and step times of a drafting rule, measured on text that the target has written.

The target's greedy text is known, so a draft can be verified without the target: a replay runs the rounds of
speculative decoding, with drafter, KV cache and calibration, and looks the verification up.

Shapes: L = layers.
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
from pdevis.tune.timing import synchronized_time

if TYPE_CHECKING:
    from pdevis.generation import Draft
    from pdevis.models.causal_lm import CausalLM
    from pdevis.models.stack import DecoderStack

REPLAY_GAMMA = 8  # draft tokens per round of a replay


@dataclass
class DraftReplay:
    """Sums over the replayed rounds of one drafting rule, on all texts.

    `tested[i]` counts the drafts whose tokens before position i were right, `passed[i]` those whose token i was right
    too. The first step of a round reads all tokens confirmed since the last one and takes longer than the next steps.
    """

    rule: DraftConfig
    tested: list[int] = field(default_factory=lambda: [0] * REPLAY_GAMMA)
    passed: list[int] = field(default_factory=lambda: [0] * REPLAY_GAMMA)
    first_step_seconds: list[float] = field(default_factory=list)
    next_step_seconds: list[float] = field(default_factory=list)
    acceptance_by_text: list[float] = field(default_factory=list)  # passed over tested
    skipped: float = 0.0
    depth: int = 0
    steps: int = 0

    def add_text(self, model: CausalLM, target_vocab: int, prompt: Sequence[int], text: Sequence[int]) -> None:
        """Draft a text round by round, and add up the results. The model's KV cache is empty afterwards.

        Args:
            model: the drafter's model.
            target_vocab: vocabulary size of the target.
            prompt: ids.
            text: ids that the target has written after the prompt.
        """
        drafter = Drafter(model, self.rule, target_vocab)
        step_ends: list[float] = []

        def record_step(probability: float) -> bool:
            step_ends.append(synchronized_time(model.device))
            return True

        drafter.open(list(prompt), DecodeConfig())
        tested, passed = sum(self.tested), sum(self.passed)
        done = 0
        try:
            while done < len(text):
                wanted = text[done : done + REPLAY_GAMMA]
                step_ends[:] = [synchronized_time(model.device)]
                draft = drafter.draft([*prompt, *text[:done]], len(wanted), should_continue=record_step)
                step_ends.append(synchronized_time(model.device))
                done += self._add_round(draft, wanted, step_ends) + 1
                drafter.rewind_to_confirmed([*prompt, *text[:done]])
            self.acceptance_by_text.append((sum(self.passed) - passed) / (sum(self.tested) - tested))
        finally:
            model.rewind(0)
            model.tokens = []

    def _add_round(self, draft: Draft, wanted: Sequence[int], step_ends: Sequence[float]) -> int:
        """Add one round, and return the number of accepted tokens. `step_ends` begins with the start of the draft."""
        right = [drafted == written for drafted, written in zip(draft.ids, wanted, strict=True)]
        accepted = [*right, False].index(False)
        for position in range(min(accepted + 1, len(wanted))):
            self.tested[position] += 1
            self.passed[position] += position < accepted
        step_seconds = [end - begin for begin, end in pairwise(step_ends)]
        self.first_step_seconds.append(step_seconds[0])
        self.next_step_seconds += step_seconds[1:]
        self.skipped += draft.skipped
        self.depth += draft.depth
        self.steps += draft.steps
        return accepted


@torch.inference_mode()
def layer_divergences(stack: DecoderStack, ids: Sequence[int]) -> list[float]:
    """Return δ of each layer, 1 - cos(h_l, h_(l-1)), averaged over the tokens: [L]."""
    stack.rewind(0)
    hidden_states: list[torch.Tensor] = []
    known = [min(token, stack.vocab_size - 1) for token in ids]
    stack.run_layers(torch.tensor(known, device=stack.device), hidden_states)
    stack.rewind(0)
    return [1 - float(similarity(after, before).mean()) for before, after in pairwise(hidden_states)]
