"""The decode loop: scripted drafters with known acceptance, statistics and limits."""

import time

import pytest

from helpers.decoding import GREEDY, NEW, PROMPT, RULES, plain, rule_name, stack_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats, Draft
from pdevis.models.stack import DecoderStack


@pytest.fixture
def target(tiny_model):
    return stack_of(tiny_model("llama"))


class ScriptedDrafter:
    """Proposes the target's own text, except at positions that its pattern marks as wrong."""

    def __init__(self, target: DecoderStack, truth: list[int], pattern: list[bool], prompt: int = len(PROMPT)) -> None:
        self.model = target
        self.truth, self.pattern, self.prompt = truth, pattern, prompt
        self.device, self.context_length = target.device, target.context_length
        self.rewound: list[int] = []

    concurrent = False

    def open(self, prompt, config) -> None:
        pass

    def draft(self, confirmed, gamma, should_continue=None, lookahead=0) -> Draft:
        position = len(confirmed) - self.prompt
        right = [self.pattern[i % len(self.pattern)] for i in range(gamma)]
        ids = [t if ok else (t + 1) % 250 for t, ok in zip(self.truth[position : position + gamma], right, strict=True)]
        return Draft(ids, depth=2 * gamma, steps=gamma)

    def rewind_to_confirmed(self, confirmed) -> None:
        self.rewound.append(len(confirmed))

    release = rewind_to_confirmed


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [
        ([True], [5, 5, 5, 5, 4]),
        ([False], [1] * NEW),
        ([True, True, False, True], [3] * 8),
        ([True, False], [2] * 12),
    ],
    ids=["always", "never", "two of four", "one"],
)
def test_scripted_acceptance(target, pattern, lengths):
    truth = plain(target)
    stats = DecodeStats()
    drafter = ScriptedDrafter(target, truth, pattern)
    events = list(speculative(Verifier(target), drafter, prompt=PROMPT, config=GREEDY, stats=stats))
    assert [event.id for event in events] == truth
    assert stats.accept_lengths == lengths
    assert stats.rounds == len(lengths)
    assert stats.accepted == NEW - len(lengths)
    assert [event.source for event in events].count("target") == len(lengths)
    assert [event.round for event in events] == [i for i, n in enumerate(lengths) for _ in range(n)]


def test_statistics_add_up(target, tiny_model):
    stats = DecodeStats()
    drafter = Drafter(stack_of(tiny_model("llama", seed=5)), DraftConfig(mode="parallel", threshold=-2.0), 264)
    list(speculative(Verifier(target), drafter, prompt=PROMPT, config=GREEDY, stats=stats))
    assert stats.prompt_tokens == len(PROMPT)
    assert stats.new_tokens == sum(stats.accept_lengths) == NEW
    assert stats.accepted + stats.rounds == NEW
    assert stats.drafted == stats.draft_steps
    assert stats.total_seconds >= stats.prefill_seconds + stats.draft_seconds + stats.verify_seconds
    assert stats.tokens_per_second == pytest.approx(NEW / (stats.total_seconds - stats.prefill_seconds))
    # Four layers, the first two and the last alone: nothing can be paired.
    assert stats.mean_skip == 0
    assert stats.serial_depth == 8


def test_time_of_the_consumer_is_not_counted(target, monkeypatch):
    """Time passes in the consumer only, by a clock of the test."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    stats = DecodeStats()
    for _ in autoregressive(Verifier(target), PROMPT, config=GREEDY, stats=stats):
        now += 1.0
    assert stats.new_tokens == NEW
    assert stats.total_seconds == 0


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_a_full_draft_that_is_accepted_costs_no_extra_drafter_forward(target, rule, monkeypatch):
    """Every round takes γ drafter forwards, whatever was accepted before."""
    calls = []
    drafter = Drafter(DecoderStack(target.weights), rule, 264)
    begin = drafter.model.begin
    monkeypatch.setattr(drafter.model, "begin", lambda tokens: calls.append(tokens) or begin(tokens))
    stats = DecodeStats()
    list(speculative(Verifier(target), drafter, prompt=PROMPT, config=GREEDY, stats=stats))
    assert len(calls) == stats.drafted + 1  # and the prompt
    del calls[0]
    if rule.mode == "exact":
        assert stats.acceptance_rate == 1
        assert max(calls) == 2  # the last draft token and the bonus token, in one forward


def test_context_ends_the_text(tiny_model):
    target = stack_of(tiny_model("llama", max_position_embeddings=16))
    truth = plain(target, config=DecodeConfig(max_new_tokens=11, eos_ids=()))
    stats = DecodeStats()
    drafter = Drafter(DecoderStack(target.weights), DraftConfig(mode="exact"), 264)
    config = DecodeConfig(max_new_tokens=50, gamma=4, eos_ids=())
    events = list(speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=stats))
    assert [event.id for event in events] == truth
    assert len(PROMPT) + len(events) == 16
    assert stats.stop_reason == "context"


def test_a_drafter_stops_at_the_end_of_its_context(target, tiny_model):
    small = stack_of(tiny_model("llama", max_position_embeddings=16))
    for length in (len(PROMPT), 20):
        prompt = (PROMPT * 4)[:length]
        stats = DecodeStats()
        drafter = Drafter(small, DraftConfig(mode="exact"), 264)
        events = list(speculative(Verifier(target), drafter, prompt=prompt, config=GREEDY, stats=stats))
        assert [event.id for event in events] == plain(target, prompt)
        assert stats.drafted < NEW


@pytest.mark.parametrize(("target_vocab", "draft_vocab"), [(264, 300), (300, 264), (264, 20)])
def test_padded_vocabularies(tiny_model, target_vocab, draft_vocab):
    """Ids beyond the target's vocabulary are never proposed; a target may write ids that the drafter lacks."""
    target = stack_of(tiny_model("llama", vocab_size=target_vocab))
    small = stack_of(tiny_model("qwen2", seed=2, vocab_size=draft_vocab))
    drafter = Drafter(small, DraftConfig(mode="exact"), target_vocab)
    for temperature in (0.0, 1.0):
        config = DecodeConfig(max_new_tokens=NEW, gamma=3, temperature=temperature, seed=1, eos_ids=())
        events = list(speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=DecodeStats()))
        assert all(event.id < target_vocab for event in events)
        if temperature == 0:
            assert [event.id for event in events] == plain(target)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_ends_with_an_eos(target, temperature):
    """Nothing after an EOS is proposed, verified or, on CPU, drafted."""
    truth = plain(target)
    eos = truth[6]
    stats = DecodeStats()
    drafter = Drafter(DecoderStack(target.weights), DraftConfig(mode="exact"), 264)
    config = DecodeConfig(max_new_tokens=NEW, gamma=8, temperature=temperature, seed=0, eos_ids=(eos,))
    events = list(speculative(Verifier(target), drafter, prompt=PROMPT, config=config, stats=stats))
    assert [event.id for event in events].count(eos) == (stats.stop_reason == "eos")
    assert stats.drafted == stats.draft_steps
    if temperature == 0:
        assert [event.id for event in events] == truth[: truth.index(eos) + 1]
        assert stats.acceptance_rate == 1
        assert stats.drafted <= truth.index(eos) + 1
