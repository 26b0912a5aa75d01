"""Wrong settings raise an error that names the value and what is allowed."""

import json
import math

import pytest

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (DraftConfig, {"mode": "fast"}, ["mode", "'fast'", "parallel"]),
        (DraftConfig, {"check": "never"}, ["check", "'never'", "inline"]),
        (DraftConfig, {"threshold": "x"}, ["threshold", "'x'", "number"]),
        (DraftConfig, {"threshold": math.nan}, ["threshold", "nan", "finite"]),
        (DraftConfig, {"window": 0}, ["window", "0", ">= 1"]),
        (DraftConfig, {"window": 2.0}, ["window", "2.0", "an integer"]),
        (DraftConfig, {"mlp_window": 0}, ["mlp_window", "0"]),
        (DraftConfig, {"keep_first": -1}, ["keep_first", "-1", ">= 0"]),
        (DraftConfig, {"calibrate": 1}, ["calibrate", "1"]),
        (DraftConfig, {"mode": "skip", "calibrate": False}, ["check = 'planned'", "'inline'"]),
        (DecodeConfig, {"gamma": 0}, ["gamma", "0", ">= 1"]),
        (DecodeConfig, {"gamma": True}, ["gamma", "True"]),
        (DecodeConfig, {"max_new_tokens": -1}, ["max_new_tokens", "-1"]),
        (DecodeConfig, {"temperature": -0.1}, ["temperature", "-0.1", ">= 0"]),
        (DecodeConfig, {"temperature": math.inf}, ["temperature", "inf"]),
        (DecodeConfig, {"temperature": 1e-46}, ["temperature", "1e-46", ">= 1e-06"]),
        (DecodeConfig, {"seed": 2**63}, ["seed", str(2**63), "<="]),
        (DecodeConfig, {"eos_ids": 2}, ["eos_ids", "2", "tuple"]),
        (DecodeConfig, {"top_k": -1}, ["top_k", "-1"]),
        (DecodeConfig, {"top_p": 0}, ["top_p", "0"]),
        (DecodeConfig, {"top_p": 1.5}, ["top_p", "1.5", "<= 1"]),
        (DecodeConfig, {"seed": -3}, ["seed", "-3"]),
        (DecodeConfig, {"eos_ids": (-1,)}, ["eos_ids", "-1"]),
    ],
)
def test_wrong_settings(config, settings, words):
    with pytest.raises(ValueError) as caught:
        config(**settings)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_unknown_settings_raise():
    with pytest.raises(TypeError):
        DraftConfig(treshold=0.9)


def test_windows():
    assert (DraftConfig(window=4).attention_lanes, DraftConfig(window=4).mlp_lanes) == (4, 2)
    assert DraftConfig(window=1).mlp_lanes == 1
    assert (
        DraftConfig(attention_window=3).attention_lanes,
        DraftConfig(attention_window=3, mlp_window=3).mlp_lanes,
    ) == (3, 3)


def test_rates_without_counts_are_none_and_never_zero():
    stats = DecodeStats()
    assert stats.acceptance_rate is stats.mean_skip is stats.serial_depth is stats.tokens_per_second is None
    assert json.loads(json.dumps(stats.as_dict()))["acceptance_rate"] is None


def test_rates():
    stats = DecodeStats(
        new_tokens=30, rounds=10, drafted=40, draft_steps=44, accepted=20, accept_lengths=[3] * 10, skipped=88.0,
        depth=440, prefill_seconds=1.0, total_seconds=4.0,
    )  # fmt: skip
    assert stats.acceptance_rate == 0.5
    assert stats.mean_accept_length == 3
    assert stats.mean_skip == 2
    assert stats.serial_depth == 10
    assert stats.tokens_per_second == 10
