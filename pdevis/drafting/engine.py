"""Drafting engines: one drafter forward, exact, under a planned schedule, or with the check inside.

`DraftEngine` decides which layers run together; a `LaneExecutor` runs them. `LocalLanes` runs the lanes of one device
one after another, which computes what parallel lanes would and counts the serial steps that they would take;
`DeviceLanes` (parallel/lanes.py) runs them at the same time on several devices. `PlainEngine` is for drafters without
access to their sublayers: every forward is exact.

Shapes: T = tokens of this forward, H = hidden size, V = vocabulary, W = lanes of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pdevis.config import AUTO, DraftConfig
from pdevis.drafting.corrections import NO_CORRECTIONS, load_corrections
from pdevis.drafting.divergence import similarity, similarity_matrix
from pdevis.drafting.draft_loop import DraftBlocks
from pdevis.drafting.schedule import (
    Group,
    exact_schedule,
    free_layers,
    parse_schedules,
    plan_schedule,
    widest_schedule,
)
from pdevis.drafting.wide_layers import PreparedLayer, PreparedSchedule, all_rows, prepare_schedule
from pdevis.generation import TracedPass
from pdevis.models.causal_lm import CHUNK, CausalLM, argmax_logprob
from pdevis.models.stack import DecoderStack, Step
from pdevis.models.static.static_forward import StaticForward


class OutputHead(Protocol):
    """Maps hidden states to logits."""

    def logits(self, h: Tensor) -> Tensor:
        """Hidden states after the last layer [T, H] -> logits [T, V]."""
        ...

    def argmax(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """Return `argmax_logprob` of the logits for h [1, H], restricted to ids below `vocab`."""
        ...


@dataclass(frozen=True)
class DraftStep:
    """Result of one drafter forward: last hidden state [1, H] and serial-path counts."""

    hidden: Tensor
    skipped: float
    depth: int
    head: OutputHead

    @property
    def logits(self) -> Tensor:
        """Next-token logits, [V]."""
        return self.head.logits(self.hidden)[0]

    def argmax(self, vocab: int) -> tuple[Tensor, Tensor]:
        """Return the most probable next token [1] with an id below `vocab`, and its log-probability among those."""
        return self.head.argmax(self.hidden, vocab)


class Engine(Protocol):
    """Runs drafter forwards, exactly or under a drafting rule."""

    def prefill(self, ids: Tensor) -> None:
        """Append ids [T] to the cache exactly; no logits."""
        ...

    def exact(self, ids: Tensor) -> DraftStep:
        """Append ids [T] with every layer in its place."""
        ...

    def draft(self, ids: Tensor) -> DraftStep:
        """Append ids [T] under the drafting rule."""
        ...

    def draft_blocks(self, *, exact_first: bool) -> DraftBlocks | None:
        """Return the layers of a draft in static shapes; None if the stack has none, or decides as it drafts.

        Args:
            exact_first: the draft begins with an exact forward.
        """
        ...

    def broadcast_token(self, ids: Tensor) -> Tensor:
        """Return the first device's choice of the next token [1]."""
        ...


class PlainEngine:
    """A drafter without access to its sublayers: every forward is exact.

    Args:
        model: its forward returns logits, which take the place of hidden states here.
        broadcast_token: returns the first process's choice of the next token; None: there is one process only.
    """

    def __init__(self, model: CausalLM, broadcast_token: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model
        self.prefill = model.prefill
        self.depth = 2 * model.num_layers
        self.broadcast_token = broadcast_token or (lambda ids: ids)

    def exact(self, ids: Tensor) -> DraftStep:
        return DraftStep(self.model.forward(ids)[-1:], skipped=0.0, depth=self.depth, head=self)

    draft = exact

    def draft_blocks(self, *, exact_first: bool) -> None:
        return None

    def logits(self, h: Tensor) -> Tensor:
        return h

    def argmax(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        return argmax_logprob(h[0, :vocab])


class LaneExecutor(OutputHead, Protocol):
    """Runs the sublayers of one window at the same time, each on its own input; returns their updates in order.

    Returned tensors may alias internal buffers that the next call overwrites; clone them to keep them longer.
    """

    is_whole: bool  # True if the stack of this process has all layers, so that no other process has to take part

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """Run all layers one after another, like `DecoderStack.run_layers`."""
        ...

    def prefill(self, ids: Tensor) -> None:
        """Append ids [T] exactly, like `DecoderStack.prefill`."""
        ...

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]:
        """Return the attention updates [T, H] of some layers, each on its own input [T, H]."""
        ...

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the MLP updates [T, H] of some layers, each on its own input [T, H]."""
        ...

    def run_prepared(self, layer: PreparedLayer, h: Tensor, step: Step) -> Tensor:
        """Return the hidden state [T, H] after a group of a static schedule, for h [T, H] before it."""
        ...

    def gather_rows(self, part: Tensor) -> tuple[Tensor, range]:
        """Return the whole of a `down` matrix [H, …], and which rows `part`, those of this device, are."""
        ...

    def broadcast_token(self, ids: Tensor) -> Tensor:
        """Return the first device's choice of the next token [1]."""
        ...


class LocalLanes:
    """All lanes on the stack's own device, one after another."""

    is_whole = True

    def __init__(self, stack: DecoderStack) -> None:
        self.stack = stack
        self.run_layers = stack.run_layers
        self.logits = stack.logits
        self.gather_rows = all_rows

    def prefill(self, ids: Tensor) -> None:
        self.stack.prefill(ids)

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]:
        return [self.stack.attention(layer, h, step) for layer, h in zip(layers, inputs, strict=True)]

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]:
        return [self.stack.mlp(layer, h) for layer, h in zip(layers, inputs, strict=True)]

    def run_prepared(self, layer: PreparedLayer, h: Tensor, step: Step) -> Tensor:
        return layer.run(self.stack, h, step)

    def argmax(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        return argmax_logprob(self.stack.logits(h)[0, :vocab])

    def broadcast_token(self, ids: Tensor) -> Tensor:
        return ids


class DraftEngine:
    """Drafting rules on a `DecoderStack`.

    Args:
        stack: the drafter, its cache included.
        config: the drafting settings; `mode` is resolved (not "auto").
        lanes: runs a window's sublayers; None: one after another on the stack's device.

    Raises:
        ValueError: the text of a schedule is wrong, or names layers that the drafter does not have; corrections cannot
            be read, or are of another drafter.
    """

    def __init__(
        self,
        stack: DecoderStack,
        config: DraftConfig,
        lanes: LaneExecutor | None = None,
    ) -> None:
        assert config.mode != "auto", "resolve the mode first"
        self.stack = stack
        self.config = config
        self.lanes = lanes or LocalLanes(stack)
        self.layers = len(stack.layers)
        self.free = free_layers(self.layers, config)
        self.keeps_all_lanes = config.threshold < -1  # no cosine is lower
        self.schedule = exact_schedule(self.layers)
        self.prepared = self._prepare()  # the shallowest first
        self.prefill = self.lanes.prefill
        self.broadcast_token = self.lanes.broadcast_token
        lanes_at_most = max(
            [config.attention_lanes, *(len(g.layers) for p in self.prepared for g in p.schedule.groups)]
        )
        self.max_tokens = CHUNK // lanes_at_most  # of a forward under a drafting rule
        self.steps = 0  # drafter forwards of the round
        self.passes: list[TracedPass] | None = None  # of the round, if they are traced

    def _prepare(self) -> list[PreparedSchedule]:
        """Return the static schedules of the settings, the shallowest first; none without."""
        if not self.config.uses_prepared_schedules:
            return []
        assert self.config.schedule not in (None, AUTO), "choose the schedules first"
        corrections = load_corrections(self.config.corrections) if self.config.corrections else NO_CORRECTIONS
        corrections.check_model(self.stack.weights)
        schedules = parse_schedules(self.config.schedule, self.layers)
        if self.config.check == "static" and len(schedules) > 1:
            raise ValueError(f"schedule = {self.config.schedule!r}: must be one schedule, as check = 'static'")
        stagger = self.config.stagger
        prepared = [
            prepare_schedule(
                self.stack, schedule, stagger=stagger, corrections=corrections, gather_rows=self.lanes.gather_rows
            )
            for schedule in sorted(schedules, key=lambda schedule: schedule.depth)
        ]
        if self.config.check == "static":
            self.schedule = prepared[0].schedule
        return prepared

    def exact(self, ids: Tensor) -> DraftStep:
        """Append ids [T] with every layer in its place; with the planned check, plan the next tokens' schedule."""
        planned = self.config.mode != "exact" and self.config.check == "planned"
        if len(ids) > CHUNK:
            self.prefill(ids[:-CHUNK])
            ids = ids[-CHUNK:]
        trace: list[Tensor] | None = [] if planned or self.passes is not None else None
        h = self.lanes.run_layers(ids, trace)
        if trace is not None:
            similarities = similarity_matrix(trace)
            if planned and self.prepared:
                fitting = (prepared.schedule for prepared in self.prepared)
                self.schedule = widest_schedule(fitting, similarities, self.config.threshold)
            elif planned:
                self.schedule = plan_schedule(similarities, self.config)
            if self.passes is not None:
                self.passes.append(TracedPass(self.steps, len(ids), similarities))
        self.steps += 1
        return DraftStep(h[-1:], skipped=0.0, depth=2 * self.layers, head=self.lanes)

    def draft(self, ids: Tensor) -> DraftStep:
        """Append ids [T] under the drafting rule. Inline decisions are made per token; counts are the last token's."""
        if self.config.mode == "exact":
            return self.exact(ids)
        if len(ids) > self.max_tokens:  # confirmed tokens of many plain rounds
            self.prefill(ids[:-1])
            ids = ids[-1:]
        blocks = self.draft_blocks(exact_first=False)
        if blocks and len(ids) <= self.stack.static.max_tokens:
            h = self.stack.run_static(ids, blocks.further)[: len(ids)]
            return DraftStep(h[-1:], skipped=self.schedule.skipped, depth=self.schedule.depth, head=self.lanes)
        step = self.stack.begin(len(ids))
        h = self.stack.embed(ids)
        if self.config.check != "inline":
            h, skipped, depth = self._scheduled(h, step), self.schedule.skipped, self.schedule.depth
        elif self.config.mode == "skip":
            h, skipped, depth = self._inline_skip(h, step)
        else:
            h, skipped, depth = self._inline_parallel(h, step)
        self.stack.commit(step)
        self.steps += 1
        return DraftStep(h[-1:], skipped=skipped, depth=depth, head=self.lanes)

    def draft_blocks(self, *, exact_first: bool) -> DraftBlocks | None:
        forward = self.stack.static
        if not isinstance(forward, StaticForward) or not self.lanes.is_whole or self.passes is not None:
            return None
        if self.config.mode == "exact":
            return DraftBlocks(forward.exact, forward.exact)
        if self.config.check == "static" and (blocks := self.prepared[0].blocks):
            return DraftBlocks(forward.exact if exact_first else blocks, blocks)
        return None

    def _scheduled(self, h: Tensor, step: Step) -> Tensor:
        for prepared in self.prepared:
            if prepared.schedule is self.schedule:
                for layer in prepared.layers:
                    h = self.lanes.run_prepared(layer, h, step)
                return h
        for group in self.schedule.groups:
            h = self._run_group(h, group, step)[-1]
        return h

    def _run_group(self, h: Tensor, group: Group, step: Step, all_states: bool = False) -> list[Tensor]:
        """Run a group's lanes from h, staggered by sublayer; return a state per layer, the group's output last.

        MLP j reads h, all attention updates up to its own, and the MLP updates of earlier batches.

        Args:
            h: [T, H] the common input.
            group: layers that run together.
            step: of this forward.
            all_states: complete the earlier states too: state j is then the output if layer j were the last one.
        """
        states: list[Tensor] = []
        for update in self.lanes.attention(group.layers, [h] * len(group.layers), step):
            states.append((states[-1] if states else h) + update)
        last = len(states) - 1
        for first in range(0, len(states), group.mlp_lanes):
            end = first + group.mlp_lanes
            updates = self.lanes.mlp(group.layers[first:end], states[first:end])
            for lane, update in enumerate(updates, first):
                for state in states[lane if all_states else min(end, last) :]:
                    state.add_(update)
        return states

    def _inline_skip(self, h: Tensor, step: Step) -> tuple[Tensor, float, int]:
        """Apply the published rule, W layers at a time.

        Lanes after the first kept layer run again from its output and overwrite their cache entries, so that every
        window gives the result of the sequential rule.
        """
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
        """Keep the updates of lanes while the true input of each is similar to the common input of the window."""
        layer, skipped, depth = 0, 0.0, 0
        while layer < self.layers:
            end = min(layer + self.config.attention_lanes, self.free.stop) if layer in self.free else layer + 1
            group = Group(tuple(range(layer, end)), self.config.mlp_lanes)
            states = self._run_group(h, group, step, all_states=not self.keeps_all_lanes)
            kept = len(states)
            if kept > 1 and not self.keeps_all_lanes:
                alike = similarity(torch.stack(states[:-1]), h) > self.config.threshold  # [W - 1, T]
                kept = 1 + [*alike.all(-1).tolist(), False].index(False)
            h = states[kept - 1]
            layer += kept
            depth += group.depth
            skipped += Group(group.layers[:kept], group.mlp_lanes).layers_overlapped
        return h, skipped, depth
