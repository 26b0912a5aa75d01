"""Generations that are abandoned, interrupted or share a prefix leave correct caches."""

import pytest

from helpers.decoding import GREEDY, PROMPT, RULES, plain, rule_name, stack_of
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.models.hf.hf_causal_lm import HFCausalLM


@pytest.fixture
def target(tiny_model):
    return stack_of(tiny_model("llama"))


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
@pytest.mark.parametrize("taken", [0, 1, 2, 7])
def test_an_abandoned_generation_leaves_correct_caches(target, tiny_model, rule, taken):
    drafter = Drafter(stack_of(tiny_model("llama", seed=1)), rule, 264)
    verifier = Verifier(target)
    other = [9, 9, 200, 31]
    events = speculative(verifier, drafter, prompt=PROMPT, config=GREEDY, stats=DecodeStats())
    confirmed = PROMPT + [next(events).id for _ in range(taken)]
    events.close()
    assert target.length <= len(confirmed) + GREEDY.gamma
    found = [event.id for event in speculative(verifier, drafter, prompt=other, config=GREEDY, stats=DecodeStats())]
    assert found == plain(stack_of(tiny_model("llama")), other)


@pytest.mark.parametrize("arch", ["llama", "qwen3_next"])
@pytest.mark.parametrize("fails", [1, 3, 5])
def test_a_failure_during_a_draft_leaves_correct_caches(tiny_model, arch, fails, monkeypatch):
    """Ctrl-C inside the drafter's or the target's forward."""
    model = tiny_model(arch)
    target = stack_of(model) if arch == "llama" else HFCausalLM(model, "float64")
    draft_model = stack_of(tiny_model("llama", seed=1))
    drafter = Drafter(draft_model, DraftConfig(mode="skip", check="inline", threshold=0.5), 264)
    verifier = Verifier(target)
    truth = plain(target)
    for victim in (draft_model, target):
        calls = iter(range(100))
        name = "attention" if victim is draft_model else "forward"
        original = getattr(victim, name)

        def fail(*args, calls=calls, original=original):
            if next(calls) == fails:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(victim, name, fail)
        with pytest.raises(KeyboardInterrupt):
            list(speculative(verifier, drafter, prompt=PROMPT, config=GREEDY, stats=DecodeStats()))
        monkeypatch.undo()
        assert [
            event.id for event in speculative(verifier, drafter, prompt=PROMPT, config=GREEDY, stats=DecodeStats())
        ] == truth


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
@pytest.mark.parametrize("arch", ["llama", "qwen3_next"])
def test_a_shared_prefix_is_reused_with_the_same_output(tiny_model, rule, arch, monkeypatch):
    model = tiny_model(arch)
    target = stack_of(model) if arch == "llama" else HFCausalLM(model, "float64")
    draft_model = stack_of(tiny_model("llama", seed=1))
    drafter, verifier = Drafter(draft_model, rule, 264), Verifier(target)
    config = DecodeConfig(max_new_tokens=10, gamma=3, eos_ids=(), reuse_prefix=True)
    first = [event.id for event in speculative(verifier, drafter, prompt=PROMPT, config=config, stats=DecodeStats())]
    prefilled = []
    monkeypatch.setattr(target, "prefill", lambda ids, run=target.prefill: prefilled.append(len(ids)) or run(ids))
    prompt = [*PROMPT, *first, 8, 8]
    found = [event.id for event in speculative(verifier, drafter, prompt=prompt, config=config, stats=DecodeStats())]
    fresh = stack_of(tiny_model(arch)) if arch == "llama" else HFCausalLM(tiny_model(arch), "float64")
    assert found == plain(fresh, prompt, DecodeConfig(max_new_tokens=10, eos_ids=()))
    assert sum(prefilled) <= 3, "the conversation so far was computed again"
    elsewhere = [1, 2, *prompt]
    found = [event.id for event in speculative(verifier, drafter, prompt=elsewhere, config=config, stats=DecodeStats())]
    assert found == plain(fresh, elsewhere, DecodeConfig(max_new_tokens=10, eos_ids=()))


@pytest.mark.parametrize("arch", ["llama", "qwen3_next"])
@pytest.mark.parametrize("victim", ["target", "drafter"])
@pytest.mark.parametrize("stage", ["open", "prefill"])
def test_an_interrupt_while_the_prompt_is_read_does_not_mix_two_conversations(
    tiny_model, arch, victim, stage, monkeypatch
):
    """The cache still holds the previous conversation, which must not be taken for the prefix of the new one."""
    model = tiny_model(arch)
    target = stack_of(model) if arch == "llama" else HFCausalLM(model, "float64")
    drafter = Drafter(stack_of(tiny_model("llama")), DraftConfig(mode="exact"), 264)
    verifier = Verifier(target)
    config = DecodeConfig(max_new_tokens=8, gamma=3, eos_ids=(), reuse_prefix=True)
    first, second = [5] * 12, [200, *range(30)]
    list(speculative(verifier, drafter, prompt=first, config=config, stats=DecodeStats()))
    side = verifier if victim == "target" else drafter
    name, owner = ("open", side) if stage == "open" else ("prefill", side.model)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(KeyboardInterrupt):
        list(speculative(verifier, drafter, prompt=second, config=config, stats=DecodeStats()))
    monkeypatch.undo()
    stats = DecodeStats()
    found = [event.id for event in speculative(verifier, drafter, prompt=second, config=config, stats=stats)]
    fresh = stack_of(tiny_model(arch)) if arch == "llama" else HFCausalLM(tiny_model(arch), "float64")
    assert found == plain(fresh, second, DecodeConfig(max_new_tokens=8, eos_ids=()))
    if arch == "llama":
        assert stats.acceptance_rate == 1  # the drafter's cache is right too
