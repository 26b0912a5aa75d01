"""The metrics of the speed comparison, on invented measurements."""

import pytest

from helpers.results import entry, measured, stats
from pdevis.benchmarks.peak_memory import summarize_memory
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.draft_step import summarize_steps
from pdevis.benchmarks.speed.speed_report import equality, expected_length, make_rows, rejections

OURS = "pdevis, exact, γ=4"


@pytest.fixture
def prompts():
    """Two prompts of 10 tokens: plain decoding takes 0.1 s per token; pdevis drafts 4 tokens of 0.02 s each."""
    ids = list(range(10))
    plain = stats([1] * 10, [0] * 10, 0.0, 1.0, 1.5)
    ours = stats([5, 2, 3], [4, 4, 2], 0.2, 0.36, 1.1)
    return [
        entry(
            **{
                PLAIN: measured(ids, 1.5, plain, "plain"),
                "peer": measured(ids, 3.0),
                OURS: measured(ids, seconds, ours, "speculative", gamma=4),
            }
        )
        for seconds in (1.0, 0.5)
    ]


def test_speeds_are_ratios_of_sums_with_intervals_and_medians(prompts):
    rows, left_out = make_rows(prompts)
    assert left_out == {}
    ours = rows[2]
    assert ours["tokens_per_second"]["value"] == pytest.approx(20 / 1.5)
    over = ours["over"][PLAIN]
    assert over["ratio"]["value"] == pytest.approx((20 / 1.5) / (20 / 3.0))
    assert over["ratio"]["low"] == pytest.approx(1.5)
    assert over["ratio"]["high"] == pytest.approx(3.0)
    assert over["median"] == pytest.approx((1.5 + 3.0) / 2)
    assert PLAIN not in rows[0]["over"]
    assert "acceptance_rate" not in rows[1]


def test_parts_of_a_round(prompts):
    ours = make_rows(prompts)[0][2]
    assert ours["acceptance_rate"]["value"] == pytest.approx(7 / 10)
    assert ours["rounds_with_rejection"] == 2, "one of each prompt: the round that adds 2 tokens after drafting 4"
    assert ours["beta"] == pytest.approx(14 / 16)
    assert ours["mean_gamma"] == pytest.approx(10 / 3)
    assert ours["mean_accept_length"] == pytest.approx(10 / 3)
    assert ours["draft_step_ms"] == pytest.approx(20)
    assert ours["c"] == pytest.approx(0.02 / 0.1)
    assert ours["c_verify"] == pytest.approx(0.02 / 0.12)
    assert ours["round_ms"] == pytest.approx({"draft": 200 / 3, "verify": 120, "rest": 40 / 3})
    assert sum(ours["round_share"].values()) == pytest.approx(1)


def test_analytic_speedup_and_the_fraction_of_it_that_is_reached(prompts):
    ours = make_rows(prompts)[0][2]
    cost = 10 / 3 * 0.2 + 1
    expected = (1 - 0.875 ** (10 / 3 + 1)) / (1 - 0.875)
    assert ours["expected_length"] == pytest.approx(expected)
    assert ours["analytic_speedup"] == pytest.approx({"from_beta": expected / cost, "from_length": 10 / 3 / cost})
    assert ours["decode_over_plain"]["value"] == pytest.approx(1.0 / 0.6)
    assert ours["share_of_analytic"]["from_length"] == pytest.approx((1.0 / 0.6) / (10 / 3 / cost))


def test_expected_length_at_the_limits():
    assert expected_length(0.0, 4) == 1
    assert expected_length(1.0, 4) == 5
    assert expected_length(0.5, 2) == pytest.approx(1.75)


def test_rejections_leave_out_rounds_without_a_draft():
    assert rejections({"accept_lengths": [1, 3, 1, 2], "draft_lengths": [0, 2, 4, 3]}) == 2


def test_a_decoder_that_never_drafts_has_no_acceptance_and_no_analytic_speedup(prompts):
    plain = prompts[0]["contestants"][PLAIN]["stats"]
    for prompt in prompts:
        prompt["contestants"][OURS]["stats"] = plain
    ours = make_rows(prompts)[0][2]
    assert all(ours[name] is None for name in ("acceptance_rate", "beta", "c", "analytic_speedup", "mean_skip"))
    assert ours["mean_gamma"] == 0


def test_a_decoder_that_was_not_measured_on_a_prompt_is_left_out_with_a_reason(prompts):
    del prompts[1]["contestants"]["peer"]
    prompts[1]["left_out"]["other"] = "it fails"
    rows, left_out = make_rows(prompts)
    assert [row["name"] for row in rows] == [PLAIN, OURS]
    assert left_out == {"other": "it fails", "peer": "measured on 1 of 2 prompts only"}


def test_equality_counts_only_what_is_comparable(prompts):
    for prompt in prompts:
        prompt["contestants"]["peer"] = measured([7], 1.0, compared=False, note="other weights")
    summary = equality(make_rows(prompts)[0])
    assert summary["all_equal"]
    assert summary["not_compared"] == {"peer": "other weights"}
    prompts[0]["contestants"][OURS]["ids"] = [9]
    summary = equality(make_rows(prompts)[0])
    assert not summary["all_equal"]
    assert summary["different"] == {OURS: 1}


def test_draft_steps(prompts):
    rows = make_rows(prompts)[0]
    raw = {"ours_seconds": [0.01, 0.03], "transformers_seconds": [0.04, 0.04], "dtype": "float32", "precision": "int8"}
    summary = summarize_steps(raw, rows)
    assert summary["speedup"]["value"] == pytest.approx(2)
    assert summary["median_speedup"] == pytest.approx((4 + 4 / 3) / 2)
    assert summary["speedup_in_rounds"] == {OURS: pytest.approx(2)}
    assert summarize_steps(None, rows) is None


def test_memory_over_weights():
    raw = {"kind": "memory", "before_bytes": 100, "peak_bytes": 400, "weight_bytes": {"both": 200}}
    summary = summarize_memory(raw)
    assert summary["peak_over_weights"] == 2
    assert summary["models_over_weights"] == 1.5
    assert summarize_memory({"kind": "memory", "left_out": "killed"}) == {"left_out": "killed"}
    assert summarize_memory(None) is None
