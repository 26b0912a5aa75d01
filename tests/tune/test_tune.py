"""Tuning: measurements and choices. No test depends on a timing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.decoding import PROMPT, plain, stack_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.gamma import RoundCosts
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.tune.acceptance import REPLAY_GAMMA, DraftReplay, layer_divergences
from pdevis.tune.selection import (
    Candidate,
    choose_candidate,
    choose_gamma,
    choose_threads,
    rules_to_try,
    smoothed_acceptance,
)
from pdevis.tune.timing import WIDTHS, TimedModel, thread_counts, time_forwards, time_thread_counts

RULES = [
    DraftConfig(mode="exact"),
    DraftConfig(mode="skip", threshold=0.5),
    DraftConfig(mode="parallel", threshold=0.0),
]
FLAT = {1: 1.0, 5: 1.0, 16: 1.0}


def make_candidate(step: float = 0.1, beta: float = 0.8, first: float | None = None) -> Candidate:
    return Candidate(
        rule=DraftConfig(mode="exact"),
        first_step_seconds=step if first is None else first,
        next_step_seconds=step,
        verify_seconds=FLAT,
        acceptance=(beta,),
        skipped=0.0,
        depth=8.0,
        tested=50,
    )


# ---- measuring ----


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_replayed_rounds_are_those_of_the_decoder(tiny_model, rule):
    """Drafted and accepted tokens are as in speculative decoding, which runs the target."""
    target, model, other = (stack_of(tiny_model("llama", seed=0)) for _ in range(3))
    text = plain(target)
    replay = DraftReplay(rule)
    replay.add_text(model, target.vocab_size, PROMPT, text)
    stats = DecodeStats()
    decode = DecodeConfig(max_new_tokens=len(text), gamma=REPLAY_GAMMA, eos_ids=())
    events = speculative(
        Verifier(target), Drafter(other, rule, target.vocab_size), prompt=PROMPT, config=decode, stats=stats
    )
    assert [event.id for event in events] == text
    rounds = replay.tested[0]
    assert abs(rounds - stats.rounds) <= 1, "the decoder's last round needs no draft"
    assert sum(replay.passed) == pytest.approx(stats.accepted, abs=1)
    assert len(replay.first_step_seconds) == rounds
    assert len(replay.first_step_seconds) + len(replay.next_step_seconds) == replay.steps
    assert all(passed <= tested for passed, tested in zip(replay.passed, replay.tested, strict=True))
    assert (model.length, model.tokens) == (0, []), "nothing is left in the cache"


def test_a_drafter_that_is_the_target_is_always_right(tiny_model):
    target = stack_of(tiny_model("llama", seed=0))
    replay = DraftReplay(RULES[0])
    replay.add_text(stack_of(tiny_model("llama", seed=0)), target.vocab_size, PROMPT, plain(target))
    assert replay.passed == replay.tested
    candidate = Candidate.from_replay(replay, FLAT)
    assert candidate.acceptance == (1.0,) * REPLAY_GAMMA
    assert candidate.acceptance_rate(4) == 1


def test_a_failing_replay_leaves_an_empty_cache(tiny_model, monkeypatch):
    model = stack_of(tiny_model("llama"))
    monkeypatch.setattr(Drafter, "rewind_to_confirmed", lambda self, confirmed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        DraftReplay(RULES[0]).add_text(model, model.vocab_size, PROMPT, [1, 2, 3])
    assert model.length == 0


def test_timed_forwards_leave_the_cache_unchanged(tiny_model):
    stack = stack_of(tiny_model("llama"))
    timed = TimedModel(stack, [*range(200), 10**6])
    before = stack.length
    assert timed.forward_seconds(16) > 0
    assert set(timed.sublayer_seconds(3)) == {"attention", "mlp", "head"}
    assert stack.length == before
    seconds_by_model = time_forwards({"target": timed}, WIDTHS, 1)
    assert set(seconds_by_model["target"]) == set(WIDTHS)
    assert all(seconds > 0 for seconds in seconds_by_model["target"].values())


def test_a_model_without_sublayer_access(tiny_model):
    timed = TimedModel(HFCausalLM(tiny_model("qwen3_next", dtype=torch.float32), "float32"), [1, 2, 3])
    assert timed.sublayer_seconds(1) == {}
    assert timed.forward_seconds(5) > 0
    assert timed.model.length == timed.context_tokens


def test_a_context_that_is_too_short_to_measure(tiny_model):
    with pytest.raises(ValueError, match="context of 16 tokens"):
        TimedModel(stack_of(tiny_model("qwen2", max_position_embeddings=16)), [1, 2, 3])


def test_divergences_are_one_for_each_layer(tiny_model):
    stack = stack_of(tiny_model("llama", layers=5))
    divergences = layer_divergences(stack, [1, 2, 3, 10**6])
    assert len(divergences) == 5
    assert all(0 <= divergence <= 2 for divergence in divergences)
    assert stack.length == 0


def test_thread_counts():
    assert thread_counts(1, 1) == [1]
    assert thread_counts(2, 2) == [1, 2]
    assert thread_counts(12, 6) == [1, 2, 4, 6, 8, 12]


def test_the_thread_count_is_restored_after_measuring(tiny_model):
    before = torch.get_num_threads()
    models = {name: TimedModel(stack_of(tiny_model("llama")), [1, 2, 3]) for name in ("target", "draft")}
    by_count = time_thread_counts(models, [1, 2], 1)
    assert torch.get_num_threads() == before
    assert set(by_count) == {1, 2}
    assert by_count[1]["round"] == pytest.approx(4 * by_count[1]["draft"] + by_count[1]["verify"])


# ---- choosing ----


def test_acceptance_is_drawn_to_the_previous_position_if_little_is_known():
    assert smoothed_acceptance([100, 0], [50, 0]) == pytest.approx([0.5, 0.5])
    estimates = smoothed_acceptance([100, 50, 1], [50, 45, 0])
    assert estimates[0] > 0.5, "the first is drawn to the mean"
    assert estimates[0] < estimates[2] < estimates[1]


def test_a_candidate_predicts_by_the_cost_model():
    candidate = make_candidate(step=0.1, first=0.3)
    costs = candidate.costs(3)
    assert costs.draft_seconds == pytest.approx((0.3 + 2 * 0.1) / 3)
    assert candidate.rate(3) == RoundCosts(costs.draft_seconds, FLAT, (0.8,)).rate(3)
    assert candidate.rate(0) == 1
    assert candidate.acceptance_rate(1) == pytest.approx(0.8)
    assert candidate.gamma == max(range(1, 17), key=candidate.rate)
    assert candidate.drafting_pays
    low, high = replace(candidate, acceptance_by_text=(0.5, 0.8)).speedup_range()
    assert low < candidate.speedup(candidate.gamma) == pytest.approx(high)
    assert not make_candidate(step=1.0, beta=0.5).drafting_pays


def test_exact_is_preferred_within_the_noise():
    exact, close, better = (make_candidate(step) for step in (0.1, 0.099, 0.05))
    assert choose_candidate([exact, close]) is exact
    assert choose_candidate([exact, close, better]) is better


def test_fewer_threads_are_preferred_within_the_noise():
    seconds = {count: {"round": value} for count, value in ((1, 2.0), (2, 1.01), (4, 1.0), (8, 1.5))}
    assert choose_threads(seconds) == 2


@pytest.mark.parametrize(
    ("pays", "fixed", "auto", "gamma"),
    [(True, 2.0, 1.0, 5), (True, 1.05, 1.0, "auto"), (True, 1.0, 2.0, "auto"), (False, 2.0, 1.0, "auto")],
)
def test_gamma_of_the_profile(pays, fixed, auto, gamma):
    assert choose_gamma(pays, 5, fixed_rate=fixed, auto_rate=auto) == gamma


def test_the_rules_that_are_tried():
    names = [(rule.mode, rule.threshold) for rule in rules_to_try(("skip", "parallel"), (0.9, 0.97), True)]
    assert names == [("exact", 0.9), ("skip", 0.9), ("skip", 0.97), ("parallel", 0.97)]
    assert rules_to_try(("skip", "parallel"), (0.9,), False) == [DraftConfig(mode="exact")]
