"""Acceptance of a rule, and times, from traces and profiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.recordings import COSTS, a_round, exact_trace, make_profile, parallel_trace, write_trace
from pdevis.config import DraftConfig
from pdevis.simulate.trace_selection import differences, find_timing, read_traces, select_trace


def test_rules_with_the_same_acceptance():
    skip = DraftConfig(mode="skip", window=1)
    assert differences(skip, replace(skip, window=4)) == []
    assert differences(replace(skip, check="inline", threshold=0.5), skip) == ["threshold", "check"]
    assert differences(DraftConfig(mode="exact"), DraftConfig(mode="parallel", window=1, threshold=0.1)) == []


def test_traces_of_one_rule_are_joined(tmp_path):
    more = write_trace(tmp_path / "more.jsonl", [a_round(2, 0)])
    (joined,) = read_traces([exact_trace(tmp_path), more])
    assert (joined.name, len(list(joined.rounds))) == ("exact.jsonl + more.jsonl", 3)
    assert select_trace([joined], DraftConfig(mode="exact")).note is None


def test_times_from_the_traces(tmp_path):
    rounds = [a_round(2, 1, verify_seconds=seconds) for seconds in (0.05, 0.06, 0.1)]
    others = [a_round(0, 0, verify_seconds=0.01), a_round(2, 0, draft_seconds=0.05)]
    path = write_trace(tmp_path / "run.jsonl", [*rounds, *others])
    timing = find_timing(read_traces([path]))
    assert timing.costs.verify_seconds == {3: 0.07}, "one forward over 1 token is too few"
    assert timing.costs.draft_seconds == 0.016
    few = find_timing(read_traces([exact_trace(tmp_path)]))
    assert few.costs.verify_seconds == {3: 0.08}
    flags = find_timing(read_traces([path]), draft_ms=8.0, target_ms=40.0)
    assert (flags.costs.draft_seconds, flags.costs.verify_seconds) == (0.008, {1: 0.04})


def test_time_of_a_further_token(tmp_path):
    """After a draft that was accepted in full, the first forward of the next round reads two tokens."""
    rounds = [
        a_round(2, 1, draft_seconds=0.032),
        a_round(2, 2, draft_seconds=0.032),
        a_round(2, 0, draft_seconds=0.035),
    ]
    traces = read_traces([write_trace(tmp_path / "run.jsonl", *[rounds] * 3)])
    timing = find_timing(traces)
    assert timing.costs.draft_seconds == 0.016
    assert timing.token_seconds == pytest.approx(0.003)
    assert find_timing(traces, token_ms=1.0).token_seconds == 0.001
    half = find_timing(traces, draft_ms=8.0)  # a faster device: not the milliseconds of the traced one
    assert half.token_seconds == pytest.approx(0.0015)
    assert find_timing(traces, draft_ms=8.0, token_ms=1.0).token_seconds == 0.001


def test_times_from_a_profile(tmp_path):
    traces, parallel = read_traces([exact_trace(tmp_path)]), read_traces([parallel_trace(tmp_path)])
    exact = make_profile(draft=DraftConfig(mode="exact"))
    timing = find_timing(traces, exact)
    assert (timing.costs.draft_seconds, timing.draft_from) == (COSTS.draft_seconds, "tuned.json")
    assert (timing.costs.verify_seconds, timing.verify_from) == (COSTS.verify_seconds, "tuned.json")
    assert find_timing(traces, exact, draft_ms=3.0).costs.draft_seconds == 0.003
    skip = find_timing(traces, make_profile())
    assert (skip.costs.draft_seconds, skip.draft_from) == (0.016, "median of the exact traces")
    with pytest.raises(ValueError, match=r"without overlap and --profile tuned.json is for mode skip$"):
        find_timing(parallel, make_profile())
