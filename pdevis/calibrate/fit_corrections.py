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
            readers = self.regression(_normed(h), self.settings.ridge)
            for layer in layers[1:]:
                self.maps[f"attention.{layer}"] = readers.fit(_normed(hidden[layer]))
        before_mlps = h
        if group.sublayers != "mlp":
            before_mlps = self.states.run([self.make(Group(layers, sublayers="attention"))], h)
        if len(layers) > 1:
            self.fit_mlp_readers(group, before_mlps)
        wide = self.make(group)
        result = self.states.run([WideLayer(group, None, wide.mlps)], before_mlps)
        if end > layers[-1] + 1 and len(wide.mlps) == 1:
            # one map for the MLPs of all lanes, whose updates are summed
            writers = self.regression(result - before_mlps, self.settings.write_ridge)
            written = writers.fit(hidden[end] - before_mlps)
            self.maps |= {f"write.{layer}": written for layer in layers}
            result = self.states.run([WideLayer(group, None, self.make(group).mlps)], before_mlps)
        return result

    def fit_mlp_readers(self, group: Group, state: Tensor) -> None:
        """Fit what the MLPs of a group read: batch by batch, for `state` [P, H] before the first one."""
        exact_layers, hidden = self.stack.layers, self.states.hidden
        batches = group.mlp_batches
        for batch in batches:
            readers = self.regression(_normed(state), self.settings.ridge)
            for layer in batch:
                attention = WideLayer(Group((layer,)), exact_layers[layer].attention, ())
                self.maps[f"mlp.{layer}"] = readers.fit(_normed(self.states.run([attention], hidden[layer])))
            if batch is not batches[-1]:
                state = self.states.run([self.make(Group(batch, len(batch), "mlp"))], state)

    def make(self, group: Group) -> WideLayer:
        return make_layer(self.stack, group, Corrections("", "", self.maps))

    def regression(self, x: Tensor, ridge: float) -> _Regression:
        dtype = torch.promote_types(self.stack.weights.dtype, torch.float32)
        return _Regression(x, ridge, rank=self.settings.rank, dtype=dtype)


class _Regression:
    """Fits of maps x -> x + x D from the same x [P, H], in float64.

    Args:
        x: what the maps are applied to.
        ridge: λ, in units of the mean square of x.
        rank: of D; None: full.
        dtype: of the maps.
    """

    def __init__(self, x: Tensor, ridge: float, *, rank: int | None, dtype: torch.dtype) -> None:
        self.x = x.double()
        gram = self.x.t() @ self.x
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        self.factor = torch.linalg.cholesky(gram)
        self.rank = None if rank is None or rank >= x.shape[1] else rank
        self.dtype = dtype

    def fit(self, y: Tensor) -> LinearMap:
        """Return the map, or its best one of the rank, whose results are nearest to y [P, H]."""
        solution = torch.cholesky_solve(self.x.t() @ (y.double() - self.x), self.factor)  # D, [H, H]
        if self.rank is None:
            return LinearMap(None, solution.to(self.dtype))
        with torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []):
            torch.manual_seed(0)  # of the randomised decomposition
            *_, directions = torch.svd_lowrank(self.x @ solution, q=self.rank, niter=4)  # of the largest changes
        return LinearMap((solution @ directions).to(self.dtype), directions.t().to(self.dtype))


def _normed(h: Tensor) -> Tensor:
    return h / torch.linalg.vector_norm(h.double(), dim=-1, keepdim=True)
