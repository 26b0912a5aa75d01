"""Fitting the corrections of a schedule, in closed form, on calibration text.

Each map is a ridge regression from what is there under the schedule to what would be there exactly. The groups are
fitted in order, each on states that the corrected groups before it have produced. Maps are full or of low rank:
reduced-rank regression keeps the directions in which the fitted change is largest. (ReplaceMe, arXiv 2505.02819, and
LinearPatch, arXiv 2505.24680, fit such maps for layers that a deployed model lacks; here they serve a drafter.)

Shapes: P = positions, H = hidden size, R = rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pdevis.calibrate.teacher_forcing import ExactStates
from pdevis.drafting.corrections import Corrections, LinearMap, weights_fingerprint
from pdevis.drafting.schedule import Group, Schedule
from pdevis.drafting.wide_layers import WideLayer, make_layer
from pdevis.models.stack import DecoderStack


@dataclass(frozen=True)
class FitSettings:
    """Settings of the regressions.

    Args:
        ridge: λ of what lanes read, in units of the mean square of an input.
        write_ridge: λ of the updates before dropped layers.
        rank: of each map; None: full.
    """

    ridge: float = 0.3
    write_ridge: float = 1.0
    rank: int | None = None


@torch.inference_mode()
def fit_corrections(
    stack: DecoderStack,
    states: ExactStates,
    schedule: Schedule,
    settings: FitSettings,
    *,
    provenance: Mapping[str, str] | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Corrections:
    """Fit the maps of a schedule.

    Args:
        stack: the drafter.
        states: of the text to fit on, at all of its positions.
        schedule: of this drafter.
        settings: of the regressions.
        provenance: stored with the maps.
        on_progress: called with a line of text for each group.
    """
    fit = _Fit(stack, states, settings)
    h = states.hidden[0]
    for index, group in enumerate(schedule.groups):
        following = schedule.groups[index + 1 : index + 2]
        end = following[0].layers[0] if following else schedule.layers
        if len(group.layers) > 1 or end > group.layers[-1] + 1:
            on_progress(f"fitting corrections, group {index + 1} of {len(schedule.groups)}")
        h = fit.add_group(group, h, end)
    return Corrections(weights_fingerprint(stack.weights), str(schedule), fit.maps, dict(provenance or {}))


class _Fit:
    """The maps fitted so far."""

    def __init__(self, stack: DecoderStack, states: ExactStates, settings: FitSettings) -> None:
        self.stack, self.states, self.settings = stack, states, settings
        self.maps: dict[str, LinearMap] = {}

    def add_group(self, group: Group, h: Tensor, end: int) -> Tensor:
        """Fit the maps of a group and of the dropped layers after it, up to `end`; return the state after them.

        Args:
            group: the group.
            h: [P, H] the state before it, under the schedule.
            end: the next layer that is not dropped.
        """
        hidden, layers = self.states.hidden, group.layers
        if len(layers) > 1:
            for layer in layers[1:]:
                self.fit_reader(f"attention.{layer}", h, hidden[layer])
        wide = self.make(group)
        before_mlps = h
        if wide.attention is not None:
            before_mlps = self.states.run([WideLayer(group, wide.attention, ())], h)
        if len(layers) > 1:
            self.fit_mlp_readers(group, before_mlps)
            wide = self.make(group)
        result = self.states.run([WideLayer(group, None, wide.mlps)], before_mlps)
        if end > layers[-1] + 1 and len(wide.mlps) == 1:
            # one map for the MLPs of all lanes, whose updates are summed
            written = self.fit(result - before_mlps, hidden[end] - before_mlps, self.settings.write_ridge)
            self.maps |= {f"write.{layer}": written for layer in layers}
            result = self.states.run([WideLayer(group, None, self.make(group).mlps)], before_mlps)
        return result

    def fit_mlp_readers(self, group: Group, state: Tensor) -> None:
        """Fit what the MLPs of a group read: batch by batch, for `state` [P, H] before the first one."""
        exact_layers, hidden = self.stack.layers, self.states.hidden
        for batch in group.mlp_batches:
            for layer in batch:
                attention = WideLayer(Group((layer,)), exact_layers[layer].attention, ())
                self.fit_reader(f"mlp.{layer}", state, self.states.run([attention], hidden[layer]))
            made = self.make(Group(batch, len(batch), "mlp"))
            state = self.states.run([WideLayer(group, None, made.mlps)], state)

    def make(self, group: Group) -> WideLayer:
        return make_layer(self.stack, group, Corrections("", "", self.maps))

    def fit_reader(self, name: str, read: Tensor, wanted: Tensor) -> None:
        """Fit the map of normed states: from `read` to `wanted`, both [P, H] before the norm."""
        self.maps[name] = self.fit(_normed(read), _normed(wanted), self.settings.ridge)

    def fit(self, x: Tensor, y: Tensor, ridge: float) -> LinearMap:
        """Return the map x -> x + x D, or its best one of low rank, that is nearest to y: [P, H] both."""
        x, change = x.double(), y.double() - x.double()
        gram = x.t() @ x
        penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
        solution = torch.linalg.solve(gram + penalty, x.t() @ change)  # [H, H]
        dtype = torch.promote_types(self.stack.weights.dtype, torch.float32)
        if self.settings.rank is None or self.settings.rank >= len(gram):
            return LinearMap(None, solution.to(dtype))
        _, vectors = torch.linalg.eigh(solution.t() @ gram @ solution)
        kept = vectors[:, -self.settings.rank :]  # directions of the largest fitted changes
        return LinearMap((solution @ kept).to(dtype), kept.t().to(dtype))


def _normed(h: Tensor) -> Tensor:
    return h / torch.linalg.vector_norm(h.double(), dim=-1, keepdim=True)
