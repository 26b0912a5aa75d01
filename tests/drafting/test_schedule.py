"""Schedules: dropped layers, groups, and their counts."""

import pytest

from pdevis.config import DraftConfig
from pdevis.drafting.schedule import (
    Group,
    exact_schedule,
    free_layers,
    parse_schedule,
    plan_schedule,
    widest_schedule,
)


def table(layers: int, low: dict[tuple[int, int], float], default: float = 1.0) -> list[list[float]]:
    """cos(h_i, h_j): `default` everywhere but at the pairs of `low`."""
    return [[low.get((i, j), default) for j in range(layers + 1)] for i in range(layers + 1)]


def test_exact_schedule_counts_two_steps_a_layer():
    schedule = exact_schedule(6)
    assert schedule.depth == 12
    assert schedule.skipped == 0


@pytest.mark.parametrize(
    ("lanes", "mlp_lanes", "depth", "overlapped"),
    [(1, 1, 2, 0), (2, 2, 2, 1), (3, 1, 4, 1), (4, 2, 3, 2.5), (3, 2, 3, 1.5)],
)
def test_group_counts(lanes, mlp_lanes, depth, overlapped):
    group = Group(tuple(range(lanes)), mlp_lanes)
    assert (group.depth, group.layers_overlapped) == (depth, overlapped)


@pytest.mark.parametrize(
    ("layers", "first", "last", "free"),
    [(8, 2, 1, [2, 3, 4, 5, 6]), (3, 2, 1, []), (2, 2, 1, []), (4, 0, 0, [0, 1, 2, 3])],
)
def test_ends_are_kept(layers, first, last, free):
    assert list(free_layers(layers, DraftConfig(keep_first=first, keep_last=last))) == free


def test_skip_drops_what_is_above_the_threshold():
    similar = table(8, {(4, 3): 0.5, (6, 5): 0.9})  # layer 3 and layer 5 change much; 0.9 is not above 0.9
    schedule = plan_schedule(similar, DraftConfig(mode="skip", threshold=0.9))
    assert schedule.dropped == (2, 4, 6)
    assert [group.layers for group in schedule.groups] == [(0,), (1,), (3,), (5,), (7,)]
    assert schedule.skipped == 3
    assert schedule.depth == 10


def test_parallel_groups_while_the_input_is_alike():
    similar = table(8, {(4, 2): 0.1})  # layer 4 may not start from the input of layer 2
    schedule = plan_schedule(similar, DraftConfig(mode="parallel", window=3))
    assert [group.layers for group in schedule.groups] == [(0,), (1,), (2, 3), (4, 5, 6), (7,)]
    assert schedule.depth == 2 + 2 + 2 + 3 + 2  # MLPs run two at a time
    assert schedule.skipped == 1 + 1.5


@pytest.mark.parametrize("mode", ["skip", "parallel"])
def test_threshold_above_one_is_exact(mode):
    assert plan_schedule(table(8, {}), DraftConfig(mode=mode, threshold=1.01)).depth == exact_schedule(8).depth


def test_threshold_below_minus_one_drops_all_it_may():
    schedule = plan_schedule(table(8, {}, default=-1.0), DraftConfig(mode="skip", threshold=-1.01))
    assert schedule.dropped == (2, 3, 4, 5, 6)


def test_window_of_one_is_exact():
    assert plan_schedule(table(8, {}), DraftConfig(mode="parallel", window=1)) == plan_schedule(
        table(8, {}), DraftConfig(mode="exact")
    )


@pytest.mark.parametrize(
    ("text", "depth", "dropped"),
    [
        ("0-7", 16, ()),
        ("0-1,2+3,4+5+6,7", 10, ()),
        ("0-1,2+3+4+5/2,7", 9, (6,)),
        ("0-1,2+3+4/1,5a,6m,7", 12, ()),
        ("0,3,7", 6, (1, 2, 4, 5, 6)),
    ],
)
def test_a_schedule_is_read_from_its_text(text, depth, dropped):
    schedule = parse_schedule(text, 8)
    assert (schedule.depth, schedule.dropped, schedule.layers) == (depth, dropped, 8)
    assert schedule.skipped == 8 - depth / 2
    assert str(schedule) == text
    assert parse_schedule(str(schedule), 8) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be of the form"),
        ("0,b", "'b' must be of the form"),
        ("0,1+3", "must be consecutive"),
        ("1,0", "ascending order"),
        ("0-3,3", "ascending order"),
        ("0-8", "has layers 0 to 7 only"),
        ("7+8+9+10", "has layers 0 to 7 only"),
    ],
)
def test_a_wrong_schedule_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_schedule(text, 8)
    assert str(error.value).startswith(f"schedule = {text!r}: ")


def test_the_widest_prepared_schedule_that_the_threshold_allows_is_used():
    wide, narrow = parse_schedule("0,1+2+3,4-7", 8), parse_schedule("0-1,2+3,4-7", 8)
    similarities = [[1 - 0.1 * abs(i - j) for j in range(9)] for i in range(9)]  # cos(h_1, h_3) = 0.8
    for threshold, expected in ((0.75, wide), (0.85, narrow), (0.95, exact_schedule(8))):
        assert widest_schedule([wide, narrow], similarities, threshold) == expected
    dropping = parse_schedule("0-1,3m,4-7", 8)
    assert widest_schedule([dropping], similarities, 0.85) == dropping
    assert widest_schedule([dropping], similarities, 0.9) == exact_schedule(8)
