"""What traces and profiles tell the simulator: acceptance of a rule, and times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.profiles import COSTS, make_profile
from helpers.traces import a_round, exact_trace, parallel_trace, write_trace
from pdevis.config import DraftConfig
from pdevis.simulate.trace_selection import choose, differences, find_timing, read_traces


def test_rules_that_accept_alike():
    skip = DraftConfig(mode="skip", window=1)
    assert differences(skip, replace(skip, window=4)) == []
    assert differences(replace(skip, check="inline", threshold=0.5), skip) == ["threshold", "check"]
    assert differences(DraftConfig(mode="exact"), DraftConfig(mode="parallel", window=1, threshold=0.1)) == []


def test_traces_of_one_rule_are_joined(tmp_path):
    more = write_trace(tmp_path / "more.jsonl", [a_round(2, 0)])
    (joined,) = read_traces([exact_trace(tmp_path), more])
    assert (joined.name, len(list(joined.rounds))) == ("exact.jsonl + more.jsonl", 3)
    assert choose([joined], DraftConfig(mode="exact")).note is None


def test_times_from_the_traces(tmp_path):
    rounds = [a_round(2, 1, verify_seconds=seconds) for seconds in (0.05, 0.06, 0.1)]
    odd = [a_round(0, 0, verify_seconds=0.01), a_round(2, 0, draft_seconds=0.05)]
    path = write_trace(tmp_path / "run.jsonl", [*rounds, *odd])
    timing = find_timing(read_traces([path]), None, None, None)
    assert timing.costs.verify_seconds == {3: 0.07}, "one forward over 1 token is not enough to go by"
    assert timing.costs.draft_seconds == 0.016
    few = find_timing(read_traces([exact_trace(tmp_path)]), None, None, None)
    assert few.costs.verify_seconds == {3: 0.08}
    flags = find_timing(read_traces([path]), 8.0, 40.0, None)
    assert (flags.costs.draft_seconds, flags.costs.verify_seconds) == (0.008, {1: 0.04})


def test_what_a_further_token_adds(tmp_path):
    """A round whose draft was accepted in full lets the next one begin with two tokens."""
    rounds = [
        a_round(2, 1, draft_seconds=0.032),
        a_round(2, 2, draft_seconds=0.032),
        a_round(2, 0, draft_seconds=0.035),
    ]
    traces = read_traces([write_trace(tmp_path / "run.jsonl", *[rounds] * 3)])
    timing = find_timing(traces, None, None, None)
    assert timing.costs.draft_seconds == 0.016
    assert timing.token_seconds == pytest.approx(0.003)
    assert find_timing(traces, None, None, None, token_ms=1.0).token_seconds == 0.001


def test_times_from_a_profile(tmp_path):
    traces, parallel = read_traces([exact_trace(tmp_path)]), read_traces([parallel_trace(tmp_path)])
    exact = make_profile(draft=DraftConfig(mode="exact"))
    timing = find_timing(traces, None, None, exact)
    assert (timing.costs.draft_seconds, timing.draft_from) == (COSTS.draft_seconds, "tuned.json")
    assert (timing.costs.verify_seconds, timing.verify_from) == (COSTS.verify_seconds, "tuned.json")
    assert find_timing(traces, 3.0, None, exact).costs.draft_seconds == 0.003
    skip = find_timing(traces, None, None, make_profile())
    assert (skip.costs.draft_seconds, skip.draft_from) == (0.016, "median of the exact traces")
    with pytest.raises(ValueError, match=r"without overlap and --profile tuned.json is for mode skip$"):
        find_timing(parallel, None, None, make_profile())
