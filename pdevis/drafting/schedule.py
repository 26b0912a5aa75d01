"""Layer schedules: groups of layers that run together, layers that are dropped, and the resulting serial depth.

A schedule is a list of groups. The layers of a group start from the same hidden state: their attentions run together,
then their MLPs, `mlp_lanes` at a time. A plain drafter is the schedule of single layers. The planned check makes a
schedule per round; a static one is written as text (`parse_schedule`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pdevis.config import DraftConfig


@dataclass(frozen=True)
class Group:
    """Consecutive layers that start from the same hidden state; of a single layer, one sublayer may be left out."""

    layers: tuple[int, ...]
    mlp_lanes: int = 1
    sublayers: Literal["both", "attention", "mlp"] = "both"

    @property
    def depth(self) -> int:
        """Serial sublayer steps: one for all attentions, one per batch of MLPs."""
        if self.sublayers != "both":
            return 1
        return 1 + -(-len(self.layers) // self.mlp_lanes)

    @property
    def layers_overlapped(self) -> float:
        """Layers that run at the same time as another one or not at all: half a layer per sublayer step saved."""
        return len(self.layers) - self.depth / 2

    @property
    def mlp_batches(self) -> list[tuple[int, ...]]:
        """The layers whose MLPs run together, in order."""
        if self.sublayers == "attention":
            return []
        return [self.layers[i : i + self.mlp_lanes] for i in range(0, len(self.layers), self.mlp_lanes)]

    def __str__(self) -> str:
        text = "+".join(map(str, self.layers)) + {"both": "", "attention": "a", "mlp": "m"}[self.sublayers]
        return text if self.mlp_lanes >= len(self.layers) else f"{text}/{self.mlp_lanes}"


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

    @cached_property
    def layers(self) -> int:
        """Number of layers of the drafter."""
        return len(self.dropped) + sum(len(group.layers) for group in self.groups)

    @cached_property
    def lanes(self) -> int:
        """Lanes of the widest group."""
        return max(len(group.layers) for group in self.groups)

    def __str__(self) -> str:
        """Return the text that `parse_schedule` reads, as in "0-1,2+3,5a,6+7+8/1,9"."""
        parts: list[str] = []
        first = last = -2  # of a run of layers that run alone
        for text in map(str, self.groups):
            if text.isdecimal() and int(text) == last + 1:
                last = int(text)
                parts[-1] = f"{first}-{last}"
            else:
                first = last = int(text) if text.isdecimal() else -2
                parts.append(text)
        return ",".join(parts)


def exact_schedule(layers: int) -> Schedule:
    return Schedule(tuple(Group((layer,)) for layer in range(layers)))


def parse_schedule(text: str, layers: int) -> Schedule:
    """Read a schedule for a drafter of this many layers.

    Its groups are separated by commas. "3" is layer 3 alone, "3-5" are layers 3, 4 and 5, one after another; "3+4" are
    both together, as one wide layer; "3+4+5/1" is the same with one MLP at a time; "3a" is only the attention of a
    layer, "3m" only its MLP. Layers are counted from 0; those that are not named are dropped.

    Raises:
        ValueError: for another form, a layer that does not exist, or layers that are not in ascending order.
    """
    groups = [group for part in text.split(",") for group in _parse_groups(part.strip(), text)]
    numbers = [layer for group in groups for layer in group.layers]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"schedule = {text!r}: its layers must be in ascending order, each at most once")
    if numbers[-1] >= layers:
        raise ValueError(f"schedule = {text!r}: the drafter has layers 0 to {layers - 1} only")
    return Schedule(tuple(groups), tuple(layer for layer in range(layers) if layer not in numbers))


def parse_schedules(text: str, layers: int) -> list[Schedule]:
    """Read prepared schedules, separated by semicolons. Raises ValueError as `parse_schedule`."""
    return [parse_schedule(part, layers) for part in text.split(";")]


def describe_depths(text: str, layers: int) -> str:
    """Return the number of serial layers without and with prepared schedules, as in "24 → 14 or 18"."""
    depths = sorted(schedule.depth / 2 for schedule in parse_schedules(text, layers))
    return f"{layers} → {' or '.join(f'{depth:g}' for depth in depths)}"


def _parse_groups(part: str, text: str) -> list[Group]:
    """Read one part of a schedule: a group, or a range of layers that run alone."""
    if match := re.fullmatch(r"(\d+)-(\d+)", part):
        return [Group((layer,)) for layer in range(int(match[1]), int(match[2]) + 1)]
    if match := re.fullmatch(r"(\d+)([am])", part):
        return [Group((int(match[1]),), sublayers="attention" if match[2] == "a" else "mlp")]
    match = re.fullmatch(r"(\d+(?:\+\d+)*)(?:/([1-9]\d*))?", part)
    if not match:
        raise ValueError(f"schedule = {text!r}: {part!r} must be of the form 3, 3-5, 3+4, 3+4/1, 3a or 3m")
    numbers = tuple(map(int, match[1].split("+")))
    if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError(f"schedule = {text!r}: the layers of {part!r} must be consecutive")
    return [Group(numbers, min(int(match[2] or len(numbers)), len(numbers)))]


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


def widest_schedule(schedules: Iterable[Schedule], similarities: list[list[float]], threshold: float) -> Schedule:
    """Return the first schedule whose divergences allow it, the exact one if none does.

    A schedule is allowed if each lane's true input is more similar to the common input of its group than the
    threshold, and so are the states before and after each run of layers that it leaves out.

    Args:
        schedules: the shallowest first.
        similarities: cos(h_i, h_j) of the tokens just calibrated.
        threshold: τ.
    """
    for schedule in schedules:
        if all(similarities[end][start] > threshold for start, end in _assumed_equal(schedule)):
            return schedule
    return exact_schedule(len(similarities) - 1)


def _assumed_equal(schedule: Schedule) -> Iterator[tuple[int, int]]:
    """Yield the pairs of states (h_i, h_j), i < j, that a schedule takes for one another."""
    for group in schedule.groups:
        first, last = group.layers[0], group.layers[-1]
        if group.sublayers != "both":
            yield first, first + 1
        elif last > first:
            yield first, last
    for layer in schedule.dropped:
        yield layer, layer + 1
