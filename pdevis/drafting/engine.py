"""Runs one drafter forward under the rules of DESIGN: exactly, after a plan, or with the check inside.

The engine decides what runs together; a `LaneExecutor` runs it. `LocalLanes` runs the lanes of one device one after
another, which computes what parallel lanes would and counts the serial steps that they would take; `DeviceLanes`
(lanes.py) runs them at the same time on several devices.

Shapes: T = tokens of this forward, H = hidden size, V = vocabulary, W = lanes of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pdevis.config import DraftConfig
from pdevis.drafting.divergence import similarity, similarity_matrix
from pdevis.drafting.schedule import Group, exact_schedule, free_layers, plan
from pdevis.generation import TracedPass
from pdevis.models.causal_lm import CHUNK
from pdevis.models.stack import DecoderStack, Step


class OutputHead(Protocol):
    """From hidden states to tokens."""

    def logits(self, h: Tensor) -> Tensor:
        """Hidden states after the last layer [T, H] -> logits [T, V]."""
        ...

    def best(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """For h [1, H]: the likeliest id [1] below `vocab`, and its logit minus the logsumexp over those ids."""
        ...


@dataclass(frozen=True)
class DraftStep:
    """What one drafter forward brings: the last token's hidden state [1, H], and what its serial path was."""

    hidden: Tensor
    skipped: float
    depth: int
    head: OutputHead

    @property
    def logits(self) -> Tensor:
        """Of the next token [V]."""
        return self.head.logits(self.hidden)[0]

    def best(self, vocab: int) -> tuple[Tensor, Tensor]:
        """The likeliest next token [1] below `vocab`, and its log-probability among those."""
        return self.head.best(self.hidden, vocab)


def argmax_logprob(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [V]: the first of the largest [1], and its log-probability [1]."""
    best = logits.argmax(-1, keepdim=True)
    return best, logits[best].float() - logits.float().logsumexp(-1)


class LaneExecutor(OutputHead, Protocol):
    """Runs the sublayers of one window at the same time, each on its own input; returns their updates in order.

    The updates may stand where the next call writes: what is to last is copied.
    """

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """All layers, each in its place: as `DecoderStack.run_layers`."""
        ...

    def prefill(self, ids: Tensor) -> None:
        """As `DecoderStack.prefill`."""
        ...

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]: ...

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]: ...

    def broadcast_token(self, ids: Tensor) -> Tensor:
        """The first device's choice of the next token [1]."""
        ...


class LocalLanes:
    """All lanes on the stack's own device, one after another."""

    def __init__(self, stack: DecoderStack) -> None:
        self.stack = stack
        self.run_layers = stack.run_layers
        self.logits = stack.logits

    def prefill(self, ids: Tensor) -> None:
        self.stack.prefill(ids)

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]:
        return [self.stack.attention(layer, h, step) for layer, h in zip(layers, inputs, strict=True)]

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]:
        return [self.stack.mlp(layer, h) for layer, h in zip(layers, inputs, strict=True)]

    def best(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        return argmax_logprob(self.stack.logits(h)[0, :vocab])

    def broadcast_token(self, ids: Tensor) -> Tensor:
        return ids


class DraftEngine:
    """One drafter on a `DecoderStack`, its cache included.

    Args:
        stack: the drafter.
        config: the drafting settings; `mode` is resolved (not "auto").
        lanes: runs a window's sublayers; None: one after another on the stack's device.
    """

    def __init__(self, stack: DecoderStack, config: DraftConfig, lanes: LaneExecutor | None = None) -> None:
        assert config.mode != "auto", "resolve the mode first"
        self.stack = stack
        self.config = config
        self.lanes = lanes or LocalLanes(stack)
        self.layers = len(stack.layers)
        self.free = free_layers(self.layers, config)
        self.always = config.threshold < -1  # no cosine is below
        self.schedule = exact_schedule(self.layers)
        self.broadcast_token = self.lanes.broadcast_token
        self.most = CHUNK // config.attention_lanes  # tokens of a forward under a rule
        self.steps = 0  # drafter forwards of the round
        self.passes: list[TracedPass] | None = None  # of the round, where they are traced

    def read(self, ids: Tensor) -> None:
        """Append ids [T] exactly; no logits."""
        self.lanes.prefill(ids)

    def exact(self, ids: Tensor) -> DraftStep:
        """Append ids [T] with every layer in its place; with the planned check, plan the tokens that follow."""
        planned = self.config.mode != "exact" and self.config.check == "planned"
        if len(ids) > CHUNK:
            self.read(ids[:-CHUNK])
            ids = ids[-CHUNK:]
        trace: list[Tensor] | None = [] if planned or self.passes is not None else None
        h = self.lanes.run_layers(ids, trace)
        if trace is not None:
            similarities = similarity_matrix(trace)
            if planned:
                self.schedule = plan(similarities, self.config)
            if self.passes is not None:
                self.passes.append(TracedPass(self.steps, len(ids), similarities))
        self.steps += 1
        return DraftStep(h[-1:], 0.0, 2 * self.layers, self.lanes)

    def draft(self, ids: Tensor) -> DraftStep:
        """Append ids [T] under the configured rule. Inline decisions are made for each token; counts are the last's."""
        if self.config.mode == "exact":
            return self.exact(ids)
        if len(ids) > self.most:  # confirmed tokens of many plain rounds
            self.read(ids[:-1])
            ids = ids[-1:]
        step = self.stack.begin(len(ids))
        h = self.stack.embed(ids)
        if self.config.check == "planned":
            h, skipped, depth = self._planned(h, step), self.schedule.skipped, self.schedule.depth
        elif self.config.mode == "skip":
            h, skipped, depth = self._inline_skip(h, step)
        else:
            h, skipped, depth = self._inline_parallel(h, step)
        self.stack.commit(step)
        self.steps += 1
        return DraftStep(h[-1:], skipped, depth, self.lanes)

    def _planned(self, h: Tensor, step: Step) -> Tensor:
        for group in self.schedule.groups:
            h = self._run_group(h, group, step)[-1]
        return h

    def _run_group(self, h: Tensor, group: Group, step: Step, every: bool = False) -> list[Tensor]:
        """The group's lanes from h, staggered by sublayer; the true hidden state after its last layer comes last.

        MLP j sees h, all attention updates up to its own, and the MLP updates of earlier batches.

        Args:
            every: make the states before it true as well: what each layer would leave behind if it were the last.
        """
        states: list[Tensor] = []
        for update in self.lanes.attention(group.layers, [h] * len(group.layers), step):
            states.append((states[-1] if states else h) + update)
        last = len(states) - 1
        for first in range(0, len(states), group.mlp_lanes):
            behind = first + group.mlp_lanes
            updates = self.lanes.mlp(group.layers[first:behind], states[first:behind])
            for lane, update in enumerate(updates, first):
                for state in states[lane if every else min(behind, last) :]:
                    state.add_(update)
        return states

    def _inline_skip(self, h: Tensor, step: Step) -> tuple[Tensor, float, int]:
        """The published rule, W layers at a time. Lanes behind the first kept layer run again from its output, and
        overwrite their cache entries, so that every window gives what the sequential rule gives."""
        layer, skipped, depth = 0, 0, 0
        while layer < self.layers:
            lanes = range(
                layer, min(layer + self.config.attention_lanes, self.layers) if layer in self.free else layer + 1
            )
            attended = [h + update for update in self.lanes.attention(lanes, [h] * len(lanes), step)]
            states = [u + update for u, update in zip(attended, self.lanes.mlp(lanes, attended), strict=True)]
            depth += 2
            redundant = similarity(torch.stack(states), h) > self.config.threshold  # [W, T]
            for lane, drops in enumerate(redundant.tolist()):
                layer += 1
                if layer - 1 not in self.free:
                    h = states[lane]
                    break
                skipped += drops[-1]
                if not all(drops):
                    h = torch.where(redundant[lane, :, None], h, states[lane])
                    break
        return h, skipped, depth

    def _inline_parallel(self, h: Tensor, step: Step) -> tuple[Tensor, float, int]:
        """Lanes keep their updates while the true input of each still looks like the window's common input."""
        layer, skipped, depth = 0, 0.0, 0
        while layer < self.layers:
            end = min(layer + self.config.attention_lanes, self.free.stop) if layer in self.free else layer + 1
            group = Group(tuple(range(layer, end)), self.config.mlp_lanes)
            states = self._run_group(h, group, step, every=not self.always)
            kept = len(states)
            if kept > 1 and not self.always:
                alike = similarity(torch.stack(states[:-1]), h) > self.config.threshold  # [W - 1, T]
                kept = 1 + [*alike.all(-1).tolist(), False].index(False)
            h = states[kept - 1]
            layer += kept
            depth += group.depth
            skipped += Group(group.layers[:kept], group.mlp_lanes).layers_overlapped
        return h, skipped, depth
