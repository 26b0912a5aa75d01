"""Tuning: what is measured, and what is chosen. No test depends on a timing."""

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
from pdevis.models.hf import HFCausalLM
from pdevis.tune.acceptance import DRAFTED, Rehearsal, divergences, rehearse
from pdevis.tune.selection import Candidate, acceptance, best, best_draft_length, best_threads, candidate, rules
from pdevis.tune.timing import WIDTHS, Timed, forward_seconds, thread_counts, thread_seconds

RULES = [
    DraftConfig(mode="exact"),
    DraftConfig(mode="skip", threshold=0.5),
    DraftConfig(mode="parallel", threshold=0.0),
]
FLAT = {1: 1.0, 5: 1.0, 16: 1.0}


def make_candidate(name: str = "exact", step: float = 0.1, beta: float = 0.8, first: float | None = None) -> Candidate:
    first = step if first is None else first
    return Candidate(name, DraftConfig(mode="exact"), first, step, FLAT, (beta,), 0.0, 8.0, 50)


# ---- measuring ----


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_rehearsed_rounds_are_those_of_the_decoder(tiny_model, rule):
    """Drafted and accepted tokens as in speculative decoding, which asks the target."""
    target, model, other = (stack_of(tiny_model("llama", seed=0)) for _ in range(3))
    text = plain(target)
    rehearsal = Rehearsal(rule)
    rehearse(rehearsal, model, target.vocab_size, PROMPT, text)
    stats = DecodeStats()
    decode = DecodeConfig(max_new_tokens=len(text), gamma=DRAFTED, eos_ids=())
    events = speculative(
        Verifier(target), Drafter(other, rule, target.vocab_size), prompt=PROMPT, config=decode, stats=stats
    )
    assert [event.id for event in events] == text
    rounds = rehearsal.tested[0]
    assert abs(rounds - stats.rounds) <= 1, "the decoder's last round has no need of a draft"
    assert sum(rehearsal.passed) == pytest.approx(stats.accepted, abs=1)
    assert len(rehearsal.first_seconds) == rounds
    assert len(rehearsal.first_seconds) + len(rehearsal.next_seconds) == rehearsal.steps
    assert all(passed <= tested for passed, tested in zip(rehearsal.passed, rehearsal.tested, strict=True))
    assert (model.length, model.tokens) == (0, []), "nothing is left in the cache"


def test_a_drafter_that_is_the_target_is_always_right(tiny_model):
    target = stack_of(tiny_model("llama", seed=0))
    rehearsal = Rehearsal(RULES[0])
    rehearse(rehearsal, stack_of(tiny_model("llama", seed=0)), target.vocab_size, PROMPT, plain(target))
    assert rehearsal.passed == rehearsal.tested
    found = candidate(rehearsal, FLAT)
    assert found.acceptance == (1.0,) * DRAFTED
    assert found.alpha(4) == 1


def test_a_failing_rehearsal_leaves_an_empty_cache(tiny_model, monkeypatch):
    model = stack_of(tiny_model("llama"))
    monkeypatch.setattr(Drafter, "settle", lambda self, confirmed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rehearse(Rehearsal(RULES[0]), model, model.vocab_size, PROMPT, [1, 2, 3])
    assert model.length == 0


def test_forwards_leave_no_trace(tiny_model):
    stack = stack_of(tiny_model("llama"))
    timed = Timed(stack, [*range(200), 10**6])
    before = stack.length
    assert timed.forward(16) > 0
    assert set(timed.sublayers(3)) == {"attention", "mlp", "head"}
    assert stack.length == before
    found = forward_seconds({"target": timed}, WIDTHS, 1)
    assert set(found["target"]) == set(WIDTHS)
    assert all(seconds > 0 for seconds in found["target"].values())


def test_a_model_that_hides_its_sublayers(tiny_model):
    timed = Timed(HFCausalLM(tiny_model("qwen3_next", dtype=torch.float32), "float32"), [1, 2, 3])
    assert timed.sublayers(1) == {}
    assert timed.forward(5) > 0
    assert timed.model.length == timed.start


def test_a_context_that_is_too_short_to_measure(tiny_model):
    with pytest.raises(ValueError, match="context of 16 tokens"):
        Timed(stack_of(tiny_model("qwen2", max_position_embeddings=16)), [1, 2, 3])


def test_divergences_are_one_for_each_layer(tiny_model):
    stack = stack_of(tiny_model("llama", layers=5))
    found = divergences(stack, [1, 2, 3, 10**6])
    assert len(found) == 5
    assert all(0 <= each <= 2 for each in found)
    assert stack.length == 0


def test_thread_counts():
    assert thread_counts(1, 1) == [1]
    assert thread_counts(2, 2) == [1, 2]
    assert thread_counts(12, 6) == [1, 2, 4, 6, 8, 12]


def test_threads_are_as_before_after_measuring(tiny_model):
    before = torch.get_num_threads()
    models = {name: Timed(stack_of(tiny_model("llama")), [1, 2, 3]) for name in ("target", "draft")}
    found = thread_seconds(models, [1, 2], 1)
    assert torch.get_num_threads() == before
    assert set(found) == {1, 2}
    assert found[1]["round"] == pytest.approx(4 * found[1]["draft"] + found[1]["verify"])


# ---- choosing ----


def test_acceptance_leans_on_the_position_before_where_little_is_known():
    assert acceptance([100, 0], [50, 0]) == pytest.approx([0.5, 0.5])
    shares = acceptance([100, 50, 1], [50, 45, 0])
    assert shares[0] > 0.5, "the first leans on the mean"
    assert shares[0] < shares[2] < shares[1]


def test_a_candidate_predicts_by_the_cost_model():
    found = make_candidate(step=0.1, first=0.3)
    costs = found.costs(3)
    assert costs.draft_seconds == pytest.approx((0.3 + 2 * 0.1) / 3)
    assert found.rate(3) == RoundCosts(costs.draft_seconds, FLAT, (0.8,)).rate(3)
    assert found.rate(0) == 1
    assert found.alpha(1) == pytest.approx(0.8)
    assert found.gamma == max(range(1, 17), key=found.rate)
    assert found.pays
    low, high = replace(found, shares=(0.5, 0.8)).spread()
    assert low < found.speedup(found.gamma) == pytest.approx(high)
    assert not make_candidate(step=1.0, beta=0.5).pays


def test_exact_is_preferred_within_the_noise():
    exact, close, better = (make_candidate(name, step) for name, step in (("exact", 0.1), ("a", 0.099), ("b", 0.05)))
    assert best([exact, close]) is exact
    assert best([exact, close, better]) is better


def test_fewer_threads_are_preferred_within_the_noise():
    seconds = {count: {"round": value} for count, value in ((1, 2.0), (2, 1.01), (4, 1.0), (8, 1.5))}
    assert best_threads(seconds) == 2


@pytest.mark.parametrize(
    ("pays", "fixed", "auto", "gamma"),
    [(True, 2.0, 1.0, 5), (True, 1.05, 1.0, "auto"), (True, 1.0, 2.0, "auto"), (False, 2.0, 1.0, "auto")],
)
def test_what_the_profile_says_of_gamma(pays, fixed, auto, gamma):
    assert best_draft_length(pays, 5, fixed, auto) == gamma


def test_the_rules_that_are_tried():
    names = [(rule.mode, rule.threshold) for rule in rules(("skip", "parallel"), (0.9, 0.97), True)]
    assert names == [("exact", 0.9), ("skip", 0.9), ("skip", 0.97), ("parallel", 0.97)]
    assert rules(("skip", "parallel"), (0.9,), False) == [DraftConfig(mode="exact")]
