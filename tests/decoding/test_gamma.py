"""γ = auto: the cost model, the stopping rule, falling back to plain decoding, and unchanged output."""

from __future__ import annotations

import pytest
import torch

from helpers.decoding import GREEDY, NEW, PROMPT, plain, stack_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.gamma import MAX_GAMMA, AutoGamma, FixedGamma, RoundCosts, gamma_policy
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats, Draft, Round, Verdict

AUTO_GREEDY = DecodeConfig(max_new_tokens=NEW, gamma="auto", eos_ids=())
FLAT = {1: 1.0, 2: 1.0, 17: 1.0}


def a_round(draft: Draft, accepted: int = 0, verify_seconds: float = 1.0, **seconds: float) -> Round:
    return Round(
        draft_limit=MAX_GAMMA, draft=draft, verdict=Verdict(accepted, bonus=0), verify_seconds=verify_seconds, **seconds
    )


def teach(policy: AutoGamma, rounds: int, alpha: float, draft: float, verify: float = 1.0, confidence: float = 0.8):
    """Feed rounds with acceptance `alpha` at these costs to a policy; return the draft lengths it chose."""
    lengths, debt = [], 0.0
    for _ in range(rounds):
        most, drafted, seen = policy.choose(MAX_GAMMA), 0, []
        while drafted < most:
            drafted += 1
            if drafted < most:
                seen.append(confidence)
                if not policy.should_continue(confidence):
                    break
        accepted = 0
        while accepted < drafted:
            debt += 1 - alpha
            if debt >= 1:
                debt -= 1
                break
            accepted += 1
        made = Draft([0] * drafted, steps=drafted, confidences=seen)
        policy.observe(a_round(made, accepted, draft_seconds=drafted * draft, verify_seconds=verify))
        lengths.append(drafted)
    return lengths


def test_expected_tokens_and_rate_are_the_formula():
    costs = RoundCosts(0.25, FLAT, [0.5])
    assert costs.expected_tokens(3) == pytest.approx((1 - 0.5**4) / (1 - 0.5))
    assert costs.rate(3) == pytest.approx(1.875 / 1.75)
    assert costs.rate(0) == 1
    assert RoundCosts(0.25, FLAT, [0.9, 0.1]).expected_tokens(2) == pytest.approx(1 + 0.9 + 0.09)


def test_verification_between_measured_widths_is_interpolated():
    costs = RoundCosts(0.1, {1: 1.0, 5: 2.0}, [0.5])
    assert [costs.verify(k) for k in (1, 3, 5, 9)] == pytest.approx([1, 1.5, 2, 2])
    assert RoundCosts(0.1, {3: 1.5}, [0.5]).verify(1) == 1.5


@pytest.mark.parametrize(
    ("draft", "acceptance", "gamma"), [(1.0, 0.5, 0), (0.3, 0.2, 0), (0.05, 0.5, 3), (0.001, 0.99, MAX_GAMMA)]
)
def test_best_gamma_depends_on_cost_and_acceptance(draft, acceptance, gamma):
    assert RoundCosts(draft, FLAT, [acceptance]).best_gamma() == gamma


def test_cheap_and_good_drafts_become_long():
    assert min(teach(AutoGamma(), 200, alpha=0.95, draft=0.02, confidence=0.95)[-50:]) >= 6


def test_expensive_drafts_stay_short():
    assert 1 <= max(teach(AutoGamma(), 200, alpha=0.8, draft=0.4)[-50:]) <= 3


def test_drafting_that_does_not_pay_is_probed_rarely():
    lengths = teach(AutoGamma(), 600, alpha=0.2, draft=0.9)
    late = lengths[200:]
    assert late.count(0) > 0.95 * len(late)
    seconds = sum(1 + 0.9 * length for length in lengths)
    tokens = sum(1 + 0.2 * length for length in lengths)
    assert seconds / tokens < 1.03, "never slower than plain decoding by more than 3 %"


def test_an_expensive_draft_prefill_delays_probes():
    cheap, expensive = AutoGamma(), AutoGamma()
    for policy, start in ((cheap, 0.0), (expensive, 50.0)):
        teach(policy, 1, alpha=0.2, draft=0.9)
        teach(policy, 1, alpha=0.2, draft=0.9)
        while policy.choose(MAX_GAMMA) == 0:
            policy.observe(a_round(Draft()))
        policy.observe(a_round(Draft([0, 0], steps=2), draft_seconds=1.8, draft_prefill_seconds=start))
    waits = [0, 0]
    for i, policy in enumerate((cheap, expensive)):
        while policy.choose(MAX_GAMMA) == 0:
            waits[i] += 1
            policy.observe(a_round(Draft()))
    assert waits[1] > 50 / 0.015 > waits[0]


def test_speculation_resumes_when_it_pays_again():
    policy = AutoGamma()
    teach(policy, 100, alpha=0.1, draft=0.9)
    assert policy.choose(MAX_GAMMA) == 0
    assert policy.falls_back
    policy.observe(a_round(Draft()))
    assert teach(policy, 3000, alpha=0.95, draft=0.05, confidence=0.95)[-1] >= 3


def test_a_draft_ends_at_low_confidence():
    policy = AutoGamma(RoundCosts(0.1, FLAT, [0.8]))
    assert policy.choose(MAX_GAMMA) == MAX_GAMMA
    assert policy.should_continue(0.99)
    assert not policy.should_continue(0.02)


def test_a_profile_replaces_the_first_measurements():
    assert AutoGamma().choose(MAX_GAMMA) == 2
    assert AutoGamma(RoundCosts(0.01, FLAT, [0.9])).choose(MAX_GAMMA) == MAX_GAMMA
    assert AutoGamma(RoundCosts(0.9, FLAT, [0.1])).choose(MAX_GAMMA) == 2, "one trial, then plain"


def test_the_settings_choose_the_policy():
    assert isinstance(gamma_policy(GREEDY), FixedGamma)
    kept = AutoGamma()
    assert gamma_policy(AUTO_GREEDY, kept) is kept
    assert gamma_policy(GREEDY).choose(2) == 2


@pytest.mark.parametrize("mode", ["exact", "skip"])
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_text_is_the_targets_own(tiny_model, mode, seed):
    """Seed 0: the drafter is the target, always right; seed 1: another model, rarely right."""
    target = stack_of(tiny_model("llama", seed=0))
    drafter = Drafter(stack_of(tiny_model("llama", seed=seed)), DraftConfig(mode=mode, threshold=0.5), 264)
    wanted = plain(target)
    policy = AutoGamma()
    for _ in range(3):  # what it learns goes into the next generation
        stats = DecodeStats()
        made = [
            event.id
            for event in speculative(
                Verifier(target), drafter, prompt=PROMPT, config=AUTO_GREEDY, stats=stats, policy=policy
            )
        ]
        assert made == wanted
        assert len(stats.draft_lengths) == stats.rounds
        assert sum(stats.draft_lengths) == stats.drafted
        assert stats.fallback_rounds <= stats.draft_lengths.count(0)
    assert stats.drafted < stats.rounds * MAX_GAMMA


def test_the_drafter_reads_no_prompt_while_drafting_does_not_pay(tiny_model):
    target = stack_of(tiny_model("llama", seed=0))
    drafter = Drafter(stack_of(tiny_model("llama", seed=1)), DraftConfig(mode="exact"), 264)
    policy = AutoGamma()
    teach(policy, 50, alpha=0.0, draft=0.9)
    stats = DecodeStats()
    short = DecodeConfig(max_new_tokens=4, gamma="auto", eos_ids=())
    assert [
        e.id for e in speculative(Verifier(target), drafter, prompt=PROMPT, config=short, stats=stats, policy=policy)
    ] == plain(target)[:4]
    assert stats.fallback_rounds == stats.rounds - 1, "the last round has no room for a draft"
    assert drafter.model.length == 0


@pytest.mark.slow
def test_sampled_text_keeps_the_targets_distribution(tiny_model):
    """The first two sampled tokens over many seeds against the exact distribution (total variation)."""
    target = stack_of(tiny_model("llama", seed=0, vocab_size=16, layers=2))
    drafter = Drafter(stack_of(tiny_model("llama", seed=1, vocab_size=16, layers=2)), DraftConfig(mode="exact"), 16)
    prompt, policy, count = [3, 1, 4], AutoGamma(RoundCosts(0.01, FLAT, [0.5])), 1500
    with torch.inference_mode():
        target.rewind(0)
        first = target.forward(torch.tensor(prompt))[-1].softmax(-1)
        exact = torch.zeros(16, 16, dtype=torch.float64)
        for token in range(16):
            target.rewind(len(prompt))
            exact[token] = first[token] * target.forward(torch.tensor([token]))[-1].softmax(-1)
    seen = torch.zeros(16, 16, dtype=torch.float64)
    for seed in range(count):
        config = DecodeConfig(max_new_tokens=3, gamma="auto", temperature=1.0, seed=seed, eos_ids=())
        ids = [
            e.id
            for e in speculative(
                Verifier(target), drafter, prompt=prompt, config=config, stats=DecodeStats(), policy=policy
            )
        ]
        seen[ids[0], ids[1]] += 1 / count
    noise = (exact * (1 - exact) / count).sqrt().sum() * 0.4  # expected distance of a true sample
    assert 0.5 * (seen - exact).abs().sum() < 1.3 * noise + 0.01
