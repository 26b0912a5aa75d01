"""Measured times of the groups that a static schedule can have, for one draft token on this device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from pdevis.drafting.schedule import Group
from pdevis.drafting.wide_layers import PreparedLayer, make_layer
from pdevis.models.stack import DecoderStack
from pdevis.tune.timing import synchronized_time

REPEATS = 15
GROUPS_TIMED = 8  # of each form, in different places: more weights than a cache holds
CONTEXT_TOKENS = 128  # in the KV cache


@dataclass(frozen=True)
class GroupForm:
    """The properties of a group that determine its time."""

    lanes: int
    mlp_lanes: int
    sublayers: str

    @classmethod
    def of(cls, group: Group) -> GroupForm:
        return cls(len(group.layers), min(group.mlp_lanes, len(group.layers)), group.sublayers)

    def groups(self, layers: int) -> list[Group]:
        """Return at most `GROUPS_TIMED` groups of this form, evenly spaced, which do not overlap."""
        starts = range(0, layers - self.lanes + 1, self.lanes)
        stride = -(-len(starts) // GROUPS_TIMED)
        return [Group(tuple(range(i, i + self.lanes)), self.mlp_lanes, self.sublayers) for i in starts[::stride]]


@torch.inference_mode()
def time_forms(stack: DecoderStack, forms: Sequence[GroupForm], ids: Sequence[int]) -> dict[GroupForm, float]:
    """Return median seconds of a group of each form; the forms are timed interleaved. The cache is empty afterwards.

    Args:
        stack: the drafter.
        forms: without repetition.
        ids: tokens of the context; they are repeated to `CONTEXT_TOKENS`.
    """
    context = (list(ids) * -(-CONTEXT_TOKENS // len(ids)))[: min(CONTEXT_TOKENS, stack.context_length - 1)]
    layers = {form: [make_layer(stack, group) for group in form.groups(len(stack.layers))] for form in forms}
    stack.rewind(0)
    stack.prefill(torch.tensor(context, device=stack.device))
    samples: dict[GroupForm, list[float]] = {form: [] for form in forms}
    for repeat in range(-2, REPEATS):
        for form in forms if repeat % 2 else reversed(forms):
            seconds = _run_seconds(stack, layers[form]) / len(layers[form])
            if repeat >= 0:
                samples[form].append(seconds)
    stack.rewind(0)
    stack.tokens = []
    return {form: median(values) for form, values in samples.items()}


def _run_seconds(stack: DecoderStack, layers: Sequence[PreparedLayer]) -> float:
    """Time layers on one token; the step is not committed, so that its cache entries will be overwritten."""
    step, h = stack.begin(1), stack.embed(torch.tensor([0], device=stack.device))
    begin = synchronized_time(stack.device)
    for layer in layers:
        h = layer.run(stack, h, step)
    return synchronized_time(stack.device) - begin
