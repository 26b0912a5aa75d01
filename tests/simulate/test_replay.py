"""The cost model, on traces whose times can be computed by hand (see helpers.recordings)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.recordings import LAYERS, SIZES, a_round, exact_pass, write_trace
from pdevis.config import DraftConfig
from pdevis.drafting.schedule import Group, Schedule, exact_schedule, parse_schedule
from pdevis.simulate.costs import DeviceSet, StepCosts
from pdevis.simulate.replay import acceptance_per_tested_token, first_forward_tokens, simulate_drafts, simulate_rounds
from pdevis.simulate.trace_reader import read_trace

STEP = StepCosts.divide(0.016, LAYERS, SIZES)
TWO = DeviceSet(2, link_seconds=0.001, contention=1.5)
PAIRED = Schedule((Group((0,), 2), Group((1, 2), 2), Group((3,), 2)))
PARALLEL = DraftConfig(mode="parallel", threshold=0.9, window=2, keep_first=1)


@pytest.fixture
def trace_of(tmp_path):
    def make(*generations, **pair):
        path = tmp_path / "run.jsonl"
        path.unlink(missing_ok=True)
        return read_trace(write_trace(path, *generations, **pair))

    return make


def test_a_step_is_divided_by_weights():
    assert (STEP.attention_seconds, STEP.mlp_seconds, STEP.head_seconds) == pytest.approx((0.001, 0.002, 0.004))
    measured = StepCosts.divide(0.016, LAYERS, SIZES, attention_share=0.5, head_share=0.5)
    parts = measured.attention_seconds, measured.mlp_seconds, measured.head_seconds
    assert parts == pytest.approx((0.001, 0.001, 0.008))


def test_on_one_device_nothing_runs_together_and_nothing_is_exchanged():
    one = DeviceSet(1, link_seconds=1.0, contention=3.0)
    assert STEP.exact_seconds(one) == pytest.approx(0.016)
    assert STEP.scheduled_seconds(exact_schedule(LAYERS), one) == pytest.approx(0.016)
    assert STEP.scheduled_seconds(PAIRED, one) == pytest.approx(0.016)
    assert STEP.scheduled_seconds(Schedule((Group((0,)), Group((3,))), (1, 2)), one) == pytest.approx(0.010)


def test_on_two_devices():
    # layers 4 x (1 + 2), half the head at 1.5 times its time, one exchange per layer and two more
    assert STEP.exact_seconds(TWO) == pytest.approx(0.012 + 0.003 + 0.006)
    # attentions 1 + 1.5 + 1, MLPs 2 + 3 + 2, the head, two exchanges per group and two more
    assert STEP.scheduled_seconds(PAIRED, TWO) == pytest.approx(0.0035 + 0.007 + 0.003 + 0.008)
    # MLPs one by one: 2 + (2 + 2) + 2, and one exchange more
    alone = Schedule(tuple(Group(group.layers, 1) for group in PAIRED.groups))
    assert STEP.scheduled_seconds(alone, TWO) == pytest.approx(0.0035 + 0.008 + 0.003 + 0.009)


def test_all_devices_work_on_mlps_that_are_split():
    split = replace(TWO, split_mlps=True)
    # attentions 4 x 1, MLPs 4 x 2 / 2 at 1.5 times their time, half the head; three exchanges per layer and two more
    assert STEP.exact_seconds(split) == pytest.approx(0.004 + 0.006 + 0.003 + 0.014)
    # attentions 1 + 1.5 + 1, MLPs as before; one exchange per group, two for each batch of MLPs, and two more
    assert STEP.scheduled_seconds(PAIRED, split) == pytest.approx(0.0035 + 0.006 + 0.003 + 0.011)
    assert STEP.exact_seconds(DeviceSet(1, split_mlps=True)) == pytest.approx(0.016)
    # of an MLP's 2 ms each device repeats 0.5 ms, without contention: 0.5 + 1.5 / 2 at 1.5 times its time
    repeated = StepCosts.divide(0.016, LAYERS, SIZES, repeated_share=0.25)
    assert repeated.exact_seconds(split) - STEP.exact_seconds(split) == pytest.approx(4 * (0.0005 + 0.001125 - 0.0015))
    assert repeated.scheduled_seconds(PAIRED, split) - STEP.scheduled_seconds(PAIRED, split) == pytest.approx(
        4 * 0.000125
    )
    assert repeated.exact_seconds(TWO) == STEP.exact_seconds(TWO)
    assert repeated.exact_seconds(DeviceSet(1, split_mlps=True)) == pytest.approx(0.016)


def test_a_wide_layer_spends_once_what_does_not_depend_on_its_weights():
    step = StepCosts.divide(0.016, LAYERS, SIZES, kernel_share=0.4)
    one, pairs = DeviceSet(1), parse_schedule("0,1+2,3", LAYERS)
    assert step.static_seconds(exact_schedule(LAYERS), one) == pytest.approx(0.016)
    # of the pair's layers, 2 x 3 ms, the part 0.4 x 3 ms is saved
    assert step.static_seconds(pairs, one) == pytest.approx(0.016 - 0.0012)
    assert STEP.static_seconds(pairs, one) == pytest.approx(0.016)
    # attention only, MLP only, dropped
    assert step.static_seconds(parse_schedule("0a,1m,3", LAYERS), one) == pytest.approx(0.004 + 0.001 + 0.002 + 0.003)
    # MLPs one by one: only the attentions' 0.4 x 1 ms are saved
    assert step.static_seconds(parse_schedule("0,1+2/1,3", LAYERS), one) == pytest.approx(0.016 - 0.0004)
    # on two devices each runs one lane, at 1.5 times its time; half the head; two exchanges a group and two more
    assert step.static_seconds(pairs, TWO) == pytest.approx(2 * 0.003 + 1.5 * 0.003 + 0.003 + 0.008)
    # MLPs by rows: 0.4 of one, and of the other 0.6 x 2 lanes half on each device, at 1.5 times their time
    split = replace(TWO, split_mlps=True)
    mlps = 2 * (0.4 + 0.6 / 2) * 1.5 * 0.002 + (0.4 + 0.6) * 1.5 * 0.002
    assert step.static_seconds(pairs, split) == pytest.approx(2 * 0.001 + 0.0015 + mlps + 0.003 + 0.011)


def test_a_static_schedule_needs_no_similarities(trace_of):
    rule = DraftConfig("parallel", check="static", schedule="0,1+2,3")
    trace = trace_of([a_round(3, 1)])
    drafts, steps = simulate_drafts(trace, rule, STEP), 3
    assert drafts.serial_depth == pytest.approx((2 * LAYERS + (steps - 1) * 6) / steps)
    uncalibrated = simulate_drafts(trace, replace(rule, calibrate=False), STEP)
    assert uncalibrated.serial_depth == pytest.approx(6)
    with pytest.raises(ValueError, match="has layers 0 to 3 only"):
        simulate_drafts(trace, replace(rule, schedule="0-9"), STEP)


def test_further_tokens_of_the_first_forward(trace_of):
    step, rule = replace(STEP, token_seconds=0.001), DraftConfig(mode="exact")
    trace = trace_of([a_round(2, 1), a_round(2, 2), a_round(0, 0), a_round(2, 0), a_round(2, 0)])
    (rounds,) = (generation.rounds for generation in trace.generations)
    assert list(first_forward_tokens(rounds, approximate=False)) == [1, 1, 2, 3, 1]
    assert list(first_forward_tokens(rounds, approximate=True)) == [1, 2, 3, 4, 1]
    seconds = [draft.seconds for draft in simulate_drafts(trace, rule, step).rounds]
    assert seconds == pytest.approx([0.032, 0.032, 0, 0.034, 0.032])


def test_more_lanes_than_devices_run_in_batches():
    three = DeviceSet(3, contention=2.0)
    assert [three.slowdown(busy) for busy in (1, 2, 3)] == [1.0, 1.5, 2.0]
    assert [three.lane_factor(count) for count in (1, 2, 3, 4, 5)] == [1.0, 1.5, 2.0, 3.0, 3.5]
    assert [DeviceSet(2).lane_factor(count) for count in (1, 2, 3, 4)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "devices = 0: must be an integer >= 1"),
        ({"link_seconds": -1}, "link_seconds = -1"),
        ({"contention": 0.5}, "contention = 0.5: must be a finite number >= 1"),
    ],
)
def test_a_device_set_checks_itself(settings, message):
    with pytest.raises(ValueError, match=message):
        DeviceSet(**settings)


def test_the_first_forward_is_exact_and_the_others_follow_its_schedule(trace_of):
    trace = trace_of([a_round(3, 1, [exact_pass(0, 1, 0.95)]), a_round(2, 1, [exact_pass(0, 2, 0.5)])], mode="skip")
    drafts = simulate_drafts(trace, PARALLEL, STEP, TWO)
    alike, unlike = drafts.rounds
    assert (alike.steps, alike.depth) == (3, 8 + 2 * 6)
    assert alike.seconds == pytest.approx(0.021 + 2 * 0.0215)
    assert (unlike.steps, unlike.depth) == (2, 8 + 8)
    # no pair: one exchange per sublayer
    assert unlike.seconds == pytest.approx(0.021 + 0.012 + 0.003 + 0.010)
    assert drafts.step_seconds == pytest.approx((0.064 + 0.046) / 5)
    assert drafts.serial_depth == 36 / 5


def test_skip_leaves_layers_out_on_one_device(trace_of):
    trace = trace_of([a_round(3, 1, [exact_pass(0, 1, 0.95)])])
    rule = replace(PARALLEL, mode="skip")
    (only,) = simulate_drafts(trace, rule, STEP).rounds
    assert only.seconds == pytest.approx(0.016 + 2 * 0.010)
    assert only.depth == 8 + 2 * 4
    (only,) = simulate_drafts(trace, replace(rule, threshold=0.96), STEP).rounds
    assert only.seconds == pytest.approx(0.048)


def test_exact_needs_no_similarities_and_the_others_do(trace_of):
    trace = trace_of([a_round(2, 1), a_round(0, 0)])
    drafts = simulate_drafts(trace, DraftConfig(mode="exact"), STEP, TWO)
    assert [(draft.steps, draft.depth) for draft in drafts.rounds] == [(2, 16), (0, 0)]
    assert drafts.step_seconds == pytest.approx(0.021)
    with pytest.raises(ValueError, match=r"run.jsonl: has no similarities, so that mode = 'parallel'"):
        simulate_drafts(trace, PARALLEL, STEP)
    empty = replace(trace, generations=(replace(trace.generations[0], rounds=()),))
    assert simulate_drafts(empty, DraftConfig(mode="exact"), STEP).step_seconds is None


def test_a_round_without_similarities_keeps_the_last_schedule(trace_of):
    trace = trace_of([a_round(2, 1, [exact_pass(0, 1, 0.95)]), a_round(2, 1)], mode="parallel")
    assert [draft.depth for draft in simulate_drafts(trace, PARALLEL, STEP, TWO).rounds] == [14, 14]


def test_an_exact_run_is_calibrated_on_the_tokens_that_the_last_round_accepted(trace_of):
    rounds = [
        a_round(3, 2, [exact_pass(0, 1, 0.5), exact_pass(1, 1, 0.6), exact_pass(2, 1, 0.9)]),
        a_round(1, 0, [exact_pass(0, 1, 0.3)]),
        a_round(1, 0, [exact_pass(0, 2, 0.3)]),
    ]
    exact = trace_of(rounds)
    assert first_cosines(exact) == pytest.approx([0.5, (0.6 + 0.9 + 0.3) / 3, 0.3])
    assert first_cosines(replace(exact, rule=DraftConfig(mode="parallel"))) == [0.5, 0.3, 0.3]


def first_cosines(trace):
    (generation,) = trace.calibrations
    return [table[1][0] for table in generation]


def run(trace, verify=0.08, guess=None, draft=0.016):
    drafts = simulate_drafts(trace, DraftConfig(mode="exact"), StepCosts.divide(draft, LAYERS, SIZES))
    return simulate_rounds(trace, drafts, lambda tokens: verify, guess_seconds=guess)


def test_rounds_without_overlap(trace_of):
    totals = run(trace_of([a_round(2, 2), a_round(3, 1), a_round(0, 0)]))
    assert (totals.rounds, totals.drafted, totals.accepted, totals.tokens) == (3, 5, 3, 6)
    assert totals.target_idle_seconds == pytest.approx(5 * 0.016)
    assert totals.verify_seconds == totals.drafter_idle_seconds == pytest.approx(3 * 0.08)
    assert totals.tokens_per_second == pytest.approx(6 / 0.32)


def test_overlap_if_the_guess_is_recorded(trace_of):
    trace = trace_of([a_round(2, 2, guessed=True), a_round(2, 2, guessed=False), a_round(2, 1), a_round(2, 2)])
    # the second draft is made during the first verification: 16 ms for the guess, 32 ms for the draft, 32 ms idle
    totals = run(trace, verify=0.08, guess=0.016)
    assert totals.target_idle_seconds == pytest.approx(3 * 0.032)
    assert totals.drafter_idle_seconds == pytest.approx(0.032 + 3 * 0.08)
    # 16 ms for the guess and 24 ms of the draft; 8 ms remain
    totals = run(trace, verify=0.04, guess=0.016)
    assert totals.target_idle_seconds == pytest.approx(3 * 0.032 + 0.008)
    assert totals.drafter_idle_seconds == pytest.approx(3 * 0.04)
    # the guess itself is not ready in time: the target waits for 6 ms of it, and for the whole draft
    totals = run(trace, verify=0.01, guess=0.016)
    assert totals.target_idle_seconds == pytest.approx(4 * 0.032 + 0.006)


def test_overlap_if_target_and_drafter_slow_each_other_down(trace_of):
    trace = trace_of([a_round(2, 2, guessed=True), a_round(2, 2)])
    drafts = simulate_drafts(trace, DraftConfig(mode="exact"), STEP)
    # the drafter works during 48 of the 80 ms, which take 1.5 times as long
    totals = simulate_rounds(trace, drafts, lambda tokens: 0.08, guess_seconds=0.016, contention=1.5)
    assert totals.verify_seconds == pytest.approx(2 * 0.08 + 0.024)
    assert (totals.target_idle_seconds, totals.drafter_idle_seconds) == pytest.approx((0.032, 0.032 + 0.08))
    # during all 40 ms; 8 ms of the draft then remain
    totals = simulate_rounds(trace, drafts, lambda tokens: 0.04, guess_seconds=0.016, contention=1.5)
    assert totals.verify_seconds == pytest.approx(2 * 0.04 + 0.02)
    assert (totals.target_idle_seconds, totals.drafter_idle_seconds) == pytest.approx((0.032 + 0.008, 0.04))
    alone = simulate_rounds(trace, drafts, lambda tokens: 0.08, contention=1.5)
    assert alone.verify_seconds == pytest.approx(2 * 0.08)


def test_overlap_in_expectation(trace_of):
    trace = trace_of([a_round(2, 2), a_round(2, 1), a_round(2, 1)])
    assert acceptance_per_tested_token(trace) == 4 / 6
    totals = run(trace, verify=0.08, guess=0.016)
    assert totals.target_idle_seconds == pytest.approx(0.032 + (1 - 2 / 3) * 0.032 + 0.032)
    assert totals.drafter_idle_seconds == pytest.approx(2 / 3 * 0.032 + 1 / 3 * 0.08 + 2 * 0.08)


def test_a_generation_begins_with_a_whole_draft(trace_of):
    totals = run(trace_of([a_round(2, 2, guessed=True)], [a_round(2, 2, guessed=True), a_round(0, 0)]), guess=0.0)
    assert totals.target_idle_seconds == pytest.approx(2 * 0.032)
    assert totals.drafter_idle_seconds == totals.verify_seconds


def test_nothing_accepted_nothing_guessed(trace_of):
    assert acceptance_per_tested_token(trace_of([a_round(2, 0), a_round(0, 0)])) == 0.0
