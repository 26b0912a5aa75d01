"""Layer schedules: groups of layers that run together, layers that are dropped, and the resulting serial depth.

A schedule is a list of groups. The layers of a group start from the same hidden state: their attentions run together,
then their MLPs, `mlp_lanes` at a time. A plain drafter is the schedule of single layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pdevis.config import DraftConfig


@dataclass(frozen=True)
class Group:
    """Consecutive layers that start from the same hidden state."""

    layers: tuple[int, ...]
    mlp_lanes: int = 1

    @property
    def depth(self) -> int:
        """Serial sublayer steps: one for all attentions, one per batch of MLPs."""
        return 1 + -(-len(self.layers) // self.mlp_lanes)

    @property
    def layers_overlapped(self) -> float:
        """Layers that run at the same time as another one: half a layer per sublayer step saved."""
        return len(self.layers) - self.depth / 2


@dataclass(frozen=True)
class Schedule:
    """Groups of layers that one draft token passes through, in order."""

    groups: tuple[Group, ...]
    dropped: tuple[int, ...] = ()

    @cached_property
    def depth(self) -> int:
        return sum(group.depth for group in self.groups)

    @cached_property
    def skipped(self) -> float:
        """Layers taken off the serial path: dropped, or run at the same time as another one."""
        return len(self.dropped) + sum(group.layers_overlapped for group in self.groups)


def exact_schedule(layers: int) -> Schedule:
    return Schedule(tuple(Group((layer,)) for layer in range(layers)))


def free_layers(layers: int, config: DraftConfig) -> range:
    """Return the layers that may be dropped or grouped: all but `keep_first` and `keep_last` at the ends."""
    return range(min(config.keep_first, layers), max(layers - config.keep_last, min(config.keep_first, layers)))


def plan_schedule(similarities: list[list[float]], config: DraftConfig) -> Schedule:
    """Return the schedule of the next draft tokens, from cos(h_i, h_j) of the tokens just calibrated.

    `skip` drops each layer whose output is more similar to its input than the threshold. `parallel` adds a layer to a
    group while its true input is that similar to the common input of the group.
    """
    layers = len(similarities) - 1
    free = free_layers(layers, config)
    if config.mode == "skip":
        dropped = tuple(layer for layer in free if similarities[layer + 1][layer] > config.threshold)
        return Schedule(tuple(Group((layer,)) for layer in range(layers) if layer not in dropped), dropped)
    if config.mode != "parallel":
        return exact_schedule(layers)
    groups: list[Group] = []
    start = 0
    while start < layers:
        end = start + 1
        if start in free:  # the input of layer `end` is h_end, the group's common input is h_start
            limit = min(start + config.attention_lanes, free.stop)
            while end < limit and similarities[end][start] > config.threshold:
                end += 1
        groups.append(Group(tuple(range(start, end)), config.mlp_lanes))
        start = end
    return Schedule(tuple(groups))
