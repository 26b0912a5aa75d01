"""Traces written by real runs: the simulator reads them, and its schedules are those of the drafter."""

from __future__ import annotations

import pytest

from helpers.processes import GREEDY, PROMPT
from pdevis.config import DraftConfig
from pdevis.drafting.schedule import plan_schedule
from pdevis.pair import load_pair
from pdevis.simulate.costs import DeviceSet, StepCosts
from pdevis.simulate.replay import simulate_drafts
from pdevis.simulate.trace_reader import read_trace
from pdevis.trace import full

RULES = [DraftConfig("parallel", 0.3), DraftConfig("skip", 0.5), DraftConfig("parallel", -2.0, attention_window=3)]


def run_traced(folder, path, rule, **options):
    pair = load_pair(str(folder), trace=path, draft=rule, draft_precision="float32", **options)
    try:
        return pair.generate(PROMPT, GREEDY).stats
    finally:
        pair.close()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_a_trace_holds_the_schedules_of_the_drafter(tiny_folder, tmp_path, rule):
    stats = run_traced(tiny_folder("llama", layers=7), tmp_path / "trace.jsonl", rule)
    trace = read_trace(tmp_path / "trace.jsonl")
    rounds = trace.generations[0].rounds
    assert [traced.drafted for traced in rounds] == stats.draft_lengths
    assert sum(traced.accepted for traced in rounds) == stats.accepted
    for traced in rounds:
        if traced.drafted:
            assert [exact_pass.step for exact_pass in traced.passes] == [0], "one exact pass per round, the first"
            schedule = plan_schedule(full(traced.passes[0].similarities), rule)
            assert traced.depth == 2 * trace.layers + (traced.steps - 1) * schedule.depth


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_the_simulator_predicts_the_depth_of_the_rule_that_was_traced(tiny_folder, tmp_path, rule):
    stats = run_traced(tiny_folder("qwen3", layers=7), tmp_path / "trace.jsonl", rule)
    trace = read_trace(tmp_path / "trace.jsonl")
    costs = StepCosts.divide(0.01, trace.layers, trace.sizes)
    drafts = simulate_drafts(trace, rule, costs, DeviceSet(count=3, link_seconds=0.0, contention=1.0))
    assert drafts.serial_depth == pytest.approx(stats.serial_depth)


def test_every_step_of_an_exact_drafter_is_traced_also_in_a_separate_process(tiny_folder, tmp_path):
    folder = tiny_folder("llama", layers=7)
    local, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
    run_traced(folder, local, DraftConfig("exact"))
    run_traced(folder, remote, DraftConfig("exact"), overlap=True)
    local_rounds, remote_rounds = (read_trace(path).generations[0].rounds for path in (local, remote))
    for local_round, remote_round in zip(local_rounds, remote_rounds, strict=True):
        assert [exact_pass.step for exact_pass in local_round.passes] == list(range(local_round.steps))
        for local_pass, remote_pass in zip(local_round.passes, remote_round.passes, strict=True):
            for local_row, remote_row in zip(local_pass.similarities, remote_pass.similarities, strict=True):
                assert local_row == pytest.approx(remote_row, abs=1e-4)


def test_an_existing_trace_is_not_overwritten(tiny_folder, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        load_pair(str(tiny_folder("llama")), trace=path)
    assert path.read_text() == "mine"


def test_a_drafter_without_sublayer_access_cannot_be_traced(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="needs a drafter that runs layer by layer"):
        load_pair(str(tiny_folder("qwen3_next")), trace=tmp_path / "trace.jsonl")
