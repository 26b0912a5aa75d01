"""Choosing a static schedule by what its groups cost and by how much they change the drafter's output.

Every group that the settings allow, and every layer or sublayer that they allow to be left out, is tried alone: the
calibration text runs through it and otherwise through exact layers, and the KL divergence of the output is its effect.
Effects are taken to add up; then dynamic programming over the layers finds the fastest schedule for any total effect.
The total effect is searched by bisection: each schedule is run as a whole, and the fastest one is taken whose predicted
retention reaches the one that was asked for.

`cosine_effects` has the effects that hidden states alone would suggest (KnapSpec, arXiv 2602.20217).

Shapes: L = layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pdevis.calibrate.group_costs import GroupForm, time_forms
from pdevis.calibrate.teacher_forcing import ExactStates, OutputChange
from pdevis.config import DraftConfig
from pdevis.drafting.divergence import similarity
from pdevis.drafting.schedule import Group, Schedule, exact_schedule, free_layers
from pdevis.drafting.wide_layers import PreparedLayer, make_layer, make_layers
from pdevis.models.stack import DecoderStack

EFFECT_STEPS = 200  # resolution of the total effect in the dynamic program
SEARCH_STEPS = 8  # schedules that are run as a whole
SMALLEST_EFFECT, LARGEST_EFFECT = 0.005, 4.0  # total effects, in nats, between which the search takes place


@dataclass(frozen=True)
class Part:
    """A part of a schedule: a group, or the layers `first` to `end` - 1 left out.

    Args:
        first, end: the layers that it stands for.
        group: None: these layers are dropped.
        seconds: time of one draft token.
        effect: change of the output if nothing else is changed.
    """

    first: int
    end: int
    group: Group | None
    seconds: float
    effect: float


@dataclass(frozen=True)
class ChosenSchedule:
    """A schedule with what was measured of it.

    Args:
        schedule: its groups.
        seconds: predicted time of its layers for one draft token.
        exact_seconds: the same of the exact drafter.
        change: of the output, measured on the calibration text.
        retention: the predicted part of the exact acceptance rate that is kept.
    """

    schedule: Schedule
    seconds: float
    exact_seconds: float
    change: OutputChange
    retention: float


def allowed_parts(layers: int, config: DraftConfig) -> list[tuple[int, int, Group | None]]:
    """Return (first, end, group) of all parts other than single exact layers that the settings allow.

    `parallel` allows groups, `skip` layers and sublayers that are left out, `auto` both. The windows limit the lanes.
    """
    free = free_layers(layers, config)
    parts: list[tuple[int, int, Group | None]] = []
    for first in free:
        if config.mode != "parallel":
            parts += [(first, first + 1, None)]
            parts += [(first, first + 1, Group((first,), sublayers=kept)) for kept in ("attention", "mlp")]
        if config.mode != "skip":
            for lanes in range(2, min(config.attention_lanes, free.stop - first) + 1):
                numbers = tuple(range(first, first + lanes))
                mlp_lanes = dict.fromkeys((1, min(lanes, config.mlp_lanes)))
                parts += [(first, first + lanes, Group(numbers, count)) for count in mlp_lanes]
    return parts


@torch.inference_mode()
def measure_parts(
    stack: DecoderStack,
    states: ExactStates,
    config: DraftConfig,
    ids: Sequence[int],
    on_progress: Callable[[str], None],
) -> list[Part]:
    """Measure costs and effects of all parts that the settings allow, single exact layers included.

    Args:
        stack: the drafter.
        states: of the text that effects are measured on.
        config: the drafting settings.
        ids: context of the timings.
        on_progress: called with a line of text at each layer.
    """
    layers = len(stack.layers)
    exact = make_layers(stack, exact_schedule(layers))
    allowed = allowed_parts(layers, config)
    on_progress("timing groups of layers")
    forms = dict.fromkeys(GroupForm.of(group) for _, _, group in allowed if group)
    seconds = time_forms(stack, [GroupForm(1, 1, "both"), *forms], ids)
    noise = states.change_under(exact).kl  # of rounding
    parts = [Part(i, i + 1, Group((i,)), seconds[GroupForm(1, 1, "both")], 0.0) for i in range(layers)]
    previous = None
    for first, end, group in allowed:
        if first != previous:
            on_progress(f"the effect of changing layer {first} of {layers}")
            previous = first
        h = states.run([make_layer(stack, group)], states.hidden[first]) if group else states.hidden[first]
        effect = states.output_change(states.run(exact[end:], h)).kl
        cost = seconds[GroupForm.of(group)] if group else 0.0
        parts.append(Part(first, end, group, cost, max(effect - noise, 0.0)))
    return parts


def cosine_effects(parts: Sequence[Part], states: ExactStates) -> list[Part]:
    """Return the parts with effects from hidden states: the divergences of the inputs that lanes should have read."""
    hidden = states.hidden

    def divergence(start: int, end: int) -> float:
        return 1 - float(similarity(hidden[end], hidden[start]).mean())

    result = []
    for part in parts:
        if part.group is None or part.group.sublayers != "both":
            kept = 0.5 if part.group else 1.0  # one of two sublayers
            effect = kept * divergence(part.first, part.end)
        else:
            effect = sum(divergence(part.first, lane) for lane in range(part.first + 1, part.end))
        result.append(Part(part.first, part.end, part.group, part.seconds, effect))
    return result


def fastest_schedule(parts: Sequence[Part], layers: int, total_effect: float) -> tuple[Schedule, float]:
    """Return the fastest schedule whose effects add up to at most `total_effect`, and its seconds.

    Dynamic programming over layers and the effect so far, in `EFFECT_STEPS` steps.
    """
    by_first: list[list[Part]] = [[] for _ in range(layers)]
    for part in parts:
        by_first[part.first].append(part)
    best: list[dict[int, tuple[float, tuple[Part, ...]]]] = [{} for _ in range(layers + 1)]
    best[0][0] = (0.0, ())
    for layer in range(layers):
        for used, (seconds, chosen) in best[layer].items():
            for part in by_first[layer]:
                step = used + -(-part.effect * EFFECT_STEPS // total_effect)
                if step > EFFECT_STEPS:
                    continue
                known = best[part.end].get(int(step))
                if known is None or seconds + part.seconds < known[0]:
                    best[part.end][int(step)] = (seconds + part.seconds, (*chosen, part))
    seconds, chosen = min(best[layers].values(), key=lambda entry: entry[0])
    groups = tuple(part.group for part in chosen if part.group)
    dropped = tuple(layer for part in chosen if not part.group for layer in range(part.first, part.end))
    return Schedule(groups, dropped), seconds


@torch.inference_mode()
def choose_schedule(
    stack: DecoderStack,
    states: ExactStates,
    parts: Sequence[Part],
    retention: float,
    on_progress: Callable[[str], None],
    *,
    drafts_for_itself: bool = False,
    prepare: Callable[[Schedule], Sequence[PreparedLayer]] | None = None,
) -> ChosenSchedule:
    """Return the fastest schedule that is predicted to keep `retention` of the exact acceptance rate.

    Args:
        stack: the drafter.
        states: of the text that schedules are measured on.
        parts: what `measure_parts` returns.
        retention: from 0 to 1.
        on_progress: called with a line of text for each schedule that is tried.
        drafts_for_itself: the target has the drafter's own weights.
        prepare: makes the layers of a schedule; None: without corrections.
    """
    layers = len(stack.layers)
    prepare = prepare or partial(make_layers, stack)
    exact, exact_seconds = fastest_schedule(parts, layers, 1e-9)
    best = ChosenSchedule(exact, exact_seconds, exact_seconds, OutputChange(0.0, 0.0, 1.0, 1.0), 1.0)
    low, high = SMALLEST_EFFECT, LARGEST_EFFECT
    tried: dict[Schedule, OutputChange] = {}
    for _ in range(SEARCH_STEPS):
        middle = (low * high) ** 0.5
        schedule, seconds = fastest_schedule(parts, layers, middle)
        if schedule not in tried:
            tried[schedule] = states.change_under(prepare(schedule))
        change = tried[schedule]
        predicted = change.self_retention if drafts_for_itself else change.retention
        on_progress(f"{schedule.depth / 2:g} serial layers: {predicted:.3f} of the acceptance rate predicted")
        if predicted >= retention:
            low = middle
            if seconds < best.seconds:
                best = ChosenSchedule(schedule, seconds, exact_seconds, change, predicted)
        else:
            high = middle
    return best
