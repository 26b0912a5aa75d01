"""The cost model, on traces whose times are worked out by hand (see simulate_helpers)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.traces import LAYERS, SIZES, a_round, exact_pass, write_trace
from pdevis.config import DraftConfig
from pdevis.drafting.schedule import Group, Schedule, exact_schedule
from pdevis.simulate.costs import Machine, StepCosts
from pdevis.simulate.replay import first_tokens, guess_rate, predict, run_rounds
from pdevis.simulate.trace_reader import read_trace

STEP = StepCosts.divide(0.016, LAYERS, SIZES)
TWO = Machine(2, link_seconds=0.001, contention=1.5)
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
    assert (STEP.attention, STEP.mlp, STEP.head) == pytest.approx((0.001, 0.002, 0.004))
    measured = StepCosts.divide(0.016, LAYERS, SIZES, attention_share=0.5, head_share=0.5)
    assert (measured.attention, measured.mlp, measured.head) == pytest.approx((0.001, 0.001, 0.008))


def test_on_one_device_nothing_runs_together_and_nothing_is_exchanged():
    one = Machine(1, link_seconds=1.0, contention=3.0)
    assert STEP.exact(one) == pytest.approx(0.016)
    assert STEP.planned(exact_schedule(LAYERS), one) == pytest.approx(0.016)
    assert STEP.planned(PAIRED, one) == pytest.approx(0.016)
    assert STEP.planned(Schedule((Group((0,)), Group((3,))), (1, 2)), one) == pytest.approx(0.010)


def test_on_two_devices():
    # layers 4 x (1 + 2), half the head at 1.5 times its time, an exchange a layer and two more
    assert STEP.exact(TWO) == pytest.approx(0.012 + 0.003 + 0.006)
    # attentions 1 + 1.5 + 1, MLPs 2 + 3 + 2, the head, two exchanges a group and two more
    assert STEP.planned(PAIRED, TWO) == pytest.approx(0.0035 + 0.007 + 0.003 + 0.008)
    # MLPs one by one: 2 + (2 + 2) + 2, and an exchange more
    alone = Schedule(tuple(Group(group.layers, 1) for group in PAIRED.groups))
    assert STEP.planned(alone, TWO) == pytest.approx(0.0035 + 0.008 + 0.003 + 0.009)


def test_all_devices_work_on_mlps_that_are_cut():
    cut = replace(TWO, cut=True)
    # attentions 4 x 1, MLPs 4 x 2 / 2 at 1.5 times their time, half the head; three exchanges a layer and two more
    assert STEP.exact(cut) == pytest.approx(0.004 + 0.006 + 0.003 + 0.014)
    # attentions 1 + 1.5 + 1, MLPs as before; an exchange a group, two for each batch of MLPs, and two more
    assert STEP.planned(PAIRED, cut) == pytest.approx(0.0035 + 0.006 + 0.003 + 0.011)
    assert STEP.exact(Machine(1, cut=True)) == pytest.approx(0.016)
    # of an MLP's 2 ms half a ms is repeated on each device, at no contention: 0.5 + 1.5 / 2 at 1.5 times its time
    repeated = StepCosts.divide(0.016, LAYERS, SIZES, repeated_share=0.25)
    assert repeated.exact(cut) - STEP.exact(cut) == pytest.approx(4 * (0.0005 + 0.001125 - 0.0015))
    assert repeated.planned(PAIRED, cut) - STEP.planned(PAIRED, cut) == pytest.approx(4 * 0.000125)
    assert repeated.exact(TWO) == STEP.exact(TWO)
    assert repeated.exact(Machine(1, cut=True)) == pytest.approx(0.016)


def test_further_tokens_of_the_first_forward(trace_of):
    step, rule = replace(STEP, token=0.001), DraftConfig(mode="exact")
    trace = trace_of([a_round(2, 1), a_round(2, 2), a_round(0, 0), a_round(2, 0), a_round(2, 0)])
    (rounds,) = (generation.rounds for generation in trace.generations)
    assert list(first_tokens(rounds, approximate=False)) == [1, 1, 2, 3, 1]
    assert list(first_tokens(rounds, approximate=True)) == [1, 2, 3, 4, 1]
    seconds = [each.seconds for each in predict(trace, rule, step).rounds]
    assert seconds == pytest.approx([0.032, 0.032, 0, 0.034, 0.032])


def test_more_lanes_than_devices_take_turns():
    three = Machine(3, contention=2.0)
    assert [three.slowdown(busy) for busy in (1, 2, 3)] == [1.0, 1.5, 2.0]
    assert [three.lanes(count) for count in (1, 2, 3, 4, 5)] == [1.0, 1.5, 2.0, 3.0, 3.5]
    assert [Machine(2).lanes(count) for count in (1, 2, 3, 4)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 0}, "devices = 0: must be an integer >= 1"),
        ({"link_seconds": -1}, "link_seconds = -1"),
        ({"contention": 0.5}, "contention = 0.5: must be a finite number >= 1"),
    ],
)
def test_a_machine_checks_itself(settings, said):
    with pytest.raises(ValueError, match=said):
        Machine(**settings)


def test_the_first_forward_is_exact_and_the_others_follow_its_plan(trace_of):
    trace = trace_of([a_round(3, 1, [exact_pass(0, 1, 0.95)]), a_round(2, 1, [exact_pass(0, 2, 0.5)])], mode="skip")
    drafting = predict(trace, PARALLEL, STEP, TWO)
    alike, unlike = drafting.rounds
    assert (alike.steps, alike.depth) == (3, 8 + 2 * 6)
    assert alike.seconds == pytest.approx(0.021 + 2 * 0.0215)
    assert (unlike.steps, unlike.depth) == (2, 8 + 8)
    # no pair: an exchange a sublayer
    assert unlike.seconds == pytest.approx(0.021 + 0.012 + 0.003 + 0.010)
    assert drafting.step_seconds == pytest.approx((0.064 + 0.046) / 5)
    assert drafting.serial_depth == 36 / 5


def test_skip_leaves_layers_out_on_one_device(trace_of):
    trace = trace_of([a_round(3, 1, [exact_pass(0, 1, 0.95)])])
    draft = replace(PARALLEL, mode="skip")
    (only,) = predict(trace, draft, STEP).rounds
    assert only.seconds == pytest.approx(0.016 + 2 * 0.010)
    assert only.depth == 8 + 2 * 4
    (only,) = predict(trace, replace(draft, threshold=0.96), STEP).rounds
    assert only.seconds == pytest.approx(0.048)


def test_exact_needs_no_similarities_and_the_others_do(trace_of):
    trace = trace_of([a_round(2, 1), a_round(0, 0)])
    drafting = predict(trace, DraftConfig(mode="exact"), STEP, TWO)
    assert [(each.steps, each.depth) for each in drafting.rounds] == [(2, 16), (0, 0)]
    assert drafting.step_seconds == pytest.approx(0.021)
    with pytest.raises(ValueError, match=r"run.jsonl: has no similarities, so that mode = 'parallel'"):
        predict(trace, PARALLEL, STEP)
    empty = replace(trace, generations=(replace(trace.generations[0], rounds=()),))
    assert predict(empty, DraftConfig(mode="exact"), STEP).step_seconds is None


def test_a_round_without_similarities_keeps_the_last_plan(trace_of):
    trace = trace_of([a_round(2, 1, [exact_pass(0, 1, 0.95)]), a_round(2, 1)], mode="parallel")
    assert [each.depth for each in predict(trace, PARALLEL, STEP, TWO).rounds] == [14, 14]


def test_an_exact_run_is_calibrated_on_what_the_round_before_has_accepted(trace_of):
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
    step = StepCosts.divide(draft, LAYERS, SIZES)
    return run_rounds(trace, predict(trace, DraftConfig(mode="exact"), step), lambda tokens: verify, guess)


def test_rounds_one_after_the_other(trace_of):
    ran = run(trace_of([a_round(2, 2), a_round(3, 1), a_round(0, 0)]))
    assert (ran.rounds, ran.drafted, ran.accepted, ran.tokens) == (3, 5, 3, 6)
    assert ran.target_idle == pytest.approx(5 * 0.016)
    assert ran.verify_seconds == ran.drafter_idle == pytest.approx(3 * 0.08)
    assert ran.tokens_per_second == pytest.approx(6 / 0.32)


def test_overlap_where_the_guess_is_recorded(trace_of):
    trace = trace_of([a_round(2, 2, guessed=True), a_round(2, 2, guessed=False), a_round(2, 1), a_round(2, 2)])
    # the second draft is made during the first verification: 16 ms for the guess, 32 ms for the draft, 32 ms idle
    ran = run(trace, verify=0.08, guess=0.016)
    assert ran.target_idle == pytest.approx(3 * 0.032)
    assert ran.drafter_idle == pytest.approx(0.032 + 3 * 0.08)
    # 16 ms for the guess and 24 ms of the draft; 8 ms remain
    ran = run(trace, verify=0.04, guess=0.016)
    assert ran.target_idle == pytest.approx(3 * 0.032 + 0.008)
    assert ran.drafter_idle == pytest.approx(3 * 0.04)
    # the guess itself is not ready in time: the target waits for 6 ms of it, and for the whole draft
    ran = run(trace, verify=0.01, guess=0.016)
    assert ran.target_idle == pytest.approx(4 * 0.032 + 0.006)


def test_overlap_where_target_and_drafter_slow_each_other(trace_of):
    trace = trace_of([a_round(2, 2, guessed=True), a_round(2, 2)])
    drafting = predict(trace, DraftConfig(mode="exact"), STEP)
    # 48 of the 80 ms go with the drafter at work, and take half as long again
    ran = run_rounds(trace, drafting, lambda tokens: 0.08, 0.016, contention=1.5)
    assert ran.verify_seconds == pytest.approx(2 * 0.08 + 0.024)
    assert (ran.target_idle, ran.drafter_idle) == pytest.approx((0.032, 0.032 + 0.08))
    # all 40 ms do; 8 ms of the draft are then left
    ran = run_rounds(trace, drafting, lambda tokens: 0.04, 0.016, contention=1.5)
    assert ran.verify_seconds == pytest.approx(2 * 0.04 + 0.02)
    assert (ran.target_idle, ran.drafter_idle) == pytest.approx((0.032 + 0.008, 0.04))
    alone = run_rounds(trace, drafting, lambda tokens: 0.08, contention=1.5)
    assert alone.verify_seconds == pytest.approx(2 * 0.08)


def test_overlap_in_expectation(trace_of):
    trace = trace_of([a_round(2, 2), a_round(2, 1), a_round(2, 1)])
    assert guess_rate(trace) == 4 / 6
    ran = run(trace, verify=0.08, guess=0.016)
    assert ran.target_idle == pytest.approx(0.032 + (1 - 2 / 3) * 0.032 + 0.032)
    assert ran.drafter_idle == pytest.approx(2 / 3 * 0.032 + 1 / 3 * 0.08 + 2 * 0.08)


def test_a_generation_begins_with_a_whole_draft(trace_of):
    ran = run(trace_of([a_round(2, 2, guessed=True)], [a_round(2, 2, guessed=True), a_round(0, 0)]), guess=0.0)
    assert ran.target_idle == pytest.approx(2 * 0.032)
    assert ran.drafter_idle == ran.verify_seconds


def test_nothing_accepted_nothing_guessed(trace_of):
    assert guess_rate(trace_of([a_round(2, 0), a_round(0, 0)])) == 0.0
