"""Traces written by real runs: the simulator reads them, and its plans are those that the drafter made."""

from __future__ import annotations

import pytest

from helpers.workers import GREEDY, PROMPT
from pdevis.config import DraftConfig
from pdevis.drafting.schedule import plan_schedule
from pdevis.pair import load_pair
from pdevis.simulate.costs import Machine, StepCosts
from pdevis.simulate.replay import predict
from pdevis.simulate.trace_reader import read_trace
from pdevis.trace import full

RULES = [DraftConfig("parallel", 0.3), DraftConfig("skip", 0.5), DraftConfig("parallel", -2.0, attention_window=3)]


def traced(folder, path, rule, **options):
    pair = load_pair(str(folder), trace=path, draft=rule, draft_precision="float32", **options)
    try:
        return pair.generate(PROMPT, GREEDY).stats
    finally:
        pair.close()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_a_trace_tells_what_the_drafter_planned(tiny_folder, tmp_path, rule):
    stats = traced(tiny_folder("llama", layers=7), tmp_path / "trace.jsonl", rule)
    trace = read_trace(tmp_path / "trace.jsonl")
    rounds = trace.generations[0].rounds
    assert [each.drafted for each in rounds] == stats.draft_lengths
    assert sum(each.accepted for each in rounds) == stats.accepted
    for each in rounds:
        if each.drafted:
            assert [seen.step for seen in each.passes] == [0], "one exact pass a round, the first"
            planned = plan_schedule(full(each.passes[0].similarities), rule)
            assert each.depth == 2 * trace.layers + (each.steps - 1) * planned.depth


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_the_simulator_predicts_the_depth_of_the_rule_that_was_traced(tiny_folder, tmp_path, rule):
    stats = traced(tiny_folder("qwen3", layers=7), tmp_path / "trace.jsonl", rule)
    trace = read_trace(tmp_path / "trace.jsonl")
    costs = StepCosts.divide(0.01, trace.layers, trace.sizes)
    found = predict(trace, rule, costs, Machine(devices=3, link_seconds=0.0, contention=1.0))
    assert found.serial_depth == pytest.approx(stats.serial_depth)


def test_every_step_of_an_exact_drafter_is_seen_also_in_a_process_of_its_own(tiny_folder, tmp_path):
    folder = tiny_folder("llama", layers=7)
    here, away = tmp_path / "here.jsonl", tmp_path / "away.jsonl"
    traced(folder, here, DraftConfig("exact"))
    traced(folder, away, DraftConfig("exact"), overlap=True)
    first, second = (read_trace(path).generations[0].rounds for path in (here, away))
    for one, other in zip(first, second, strict=True):
        assert [seen.step for seen in one.passes] == list(range(one.steps))
        for seen, same in zip(one.passes, other.passes, strict=True):
            for row, alike in zip(seen.similarities, same.similarities, strict=True):
                assert row == pytest.approx(alike, abs=1e-4)


def test_a_trace_that_is_there_is_not_overwritten(tiny_folder, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        load_pair(str(tiny_folder("llama")), trace=path)
    assert path.read_text() == "mine"


def test_a_drafter_that_runs_whole_cannot_be_traced(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="needs a drafter that runs layer by layer"):
        load_pair(str(tiny_folder("qwen3_next")), trace=tmp_path / "trace.jsonl")
