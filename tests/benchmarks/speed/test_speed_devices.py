"""The gains of lanes and of drafting ahead, on invented measurements."""

from __future__ import annotations

import pytest

from helpers.results import entry, measured, stats
from pdevis.benchmarks.speed.decoders import PLAIN
from pdevis.benchmarks.speed.speed_report import make_rows
from pdevis.benchmarks.speed.speed_spec import parse_device_lists
from pdevis.benchmarks.speed.speed_table import DEVICE_COLUMNS, device_rows

EXACT, LANES = "exact on cpu:0", "parallel on cpu:0,cpu:1"
AHEAD = f"{EXACT}, overlap"


@pytest.fixture
def rows():
    """Two prompts of 10 tokens; lanes draft in half the time and lose a token; two of three are drafted ahead."""
    ids = list(range(10))
    one = stats([5, 2, 3], [4, 4, 2], 0.4, 0.3, 1.3) | {"drafter_idle_seconds": 0.3}
    two = stats([5, 2, 2, 1], [4, 4, 2, 0], 0.2, 0.3, 1.1) | {"drafter_idle_seconds": 0.3, "mode": "parallel"}
    ahead = stats([5, 2, 3], [4, 4, 2], 0.1, 0.36, 1.0) | {"drafter_idle_seconds": 0.03, "ahead_rounds": 2}
    plain = stats([1] * 10, [0] * 10, 0.0, 1.0, 1.5)
    decoders = {
        PLAIN: measured(ids, 1.5, plain, "plain"),
        EXACT: measured(ids, 1.3, one, "speculative", gamma=4, draft_device="cpu:0", overlap=None),
        LANES: measured(ids, 1.1, two, "speculative", gamma=4, draft_device="cpu:0,cpu:1", overlap=None),
        AHEAD: measured(ids, 1.0, ahead, "speculative", gamma=4, draft_device="cpu:0", overlap=EXACT),
    }
    computed, _ = make_rows([entry(**decoders)] * 2)
    return {row["name"]: row for row in computed}


def test_draft_speedup_and_retention_are_over_exact_on_the_first_devices(rows):
    assert rows[EXACT]["devices"]["draft_speedup"]["value"] == pytest.approx(1)
    assert rows[LANES]["devices"]["base"] == EXACT
    assert rows[LANES]["devices"]["draft_speedup"]["value"] == pytest.approx((10 / 0.2) / (10 / 0.4))
    assert rows[LANES]["devices"]["retention"]["value"] == pytest.approx((6 / 10) / (7 / 10))


def test_drafting_ahead_is_compared_with_the_same_decoder_without_it(rows):
    metrics = rows[AHEAD]["devices"]
    assert metrics["without_overlap"] == EXACT
    assert metrics["overlap"]["value"] == pytest.approx(1.3 / 1.0)
    assert metrics["overlap_decode"]["value"] == pytest.approx((1.3 - 0.5) / (1.0 - 0.5))
    assert (metrics["ahead_rounds"], metrics["ahead_dropped"], metrics["rounds"]) == (4, 0, 6)
    assert metrics["target_idle_ms"] == pytest.approx(1000 * 0.1 / 3)
    assert metrics["drafter_idle_ms"] == pytest.approx(10)
    assert "draft_speedup" not in metrics, "with overlap, drafting time includes waiting"


def test_table_has_a_row_for_each_decoder_on_named_devices(rows):
    lines = device_rows(list(rows.values()))
    assert [line[0] for line in lines] == [EXACT, LANES, AHEAD]
    assert all(len(line) == len(DEVICE_COLUMNS) for line in lines)
    assert "devices" not in rows[PLAIN]


def test_device_lists_must_differ():
    assert parse_device_lists(None) == ()
    assert parse_device_lists("cpu:0; cpu:0,cpu:1") == ("cpu:0", "cpu:0,cpu:1")
    for text in ("", "cpu:0;", "cpu:0;cpu:0"):
        with pytest.raises(ValueError, match="--draft_devices"):
            parse_device_lists(text)
