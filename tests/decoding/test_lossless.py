"""Losslessness: greedy ids are the target's own, sampled ids follow the target's distribution, in every mode."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from test_sampling import chi_square

from helpers.tiny_models import ALL, DENSE
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.sampling import distribution
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.models.stack import DecoderStack

PROMPTS = [[7], [7, 200], [(37 * i) % 251 for i in range(33)]]
RULES = [DraftConfig(mode="exact"), DraftConfig(mode="skip", check="inline", threshold=0.6, calibrate=False)] + [
    DraftConfig(mode=mode, check=check, threshold=0.6, window=window)
    for mode, check, window in product(("skip", "parallel"), ("inline", "planned"), (1, 2, 3))
    if check == "inline" or (mode, window) in (("skip", 2), ("parallel", 2), ("parallel", 3))  # others repeat a rule
]
RULES += [
    DraftConfig("parallel", check="static", schedule="0,1+2,3"),
    DraftConfig("parallel", check="static", schedule="0,1+2+3", calibrate=False),
    DraftConfig("parallel", check="static", schedule="0,1+2+3", stagger=True),
    DraftConfig("skip", check="static", schedule="0,2a,3"),
    DraftConfig("parallel", threshold=0.6, schedule="0,1+2+3;0,1+2,3"),
]
NEW = 18


def name(rule: DraftConfig) -> str:
    window = rule.schedule or f"W{rule.window}"
    return f"{rule.mode}-{rule.check}-{window}" + "-staggered" * rule.stagger + "-uncalibrated" * (not rule.calibrate)


def wrap(model):
    dense = model.config.model_type in DENSE
    return DecoderStack(read_weights(model, "float64", torch.device("cpu"))) if dense else HFCausalLM(model, "float64")


class Setting:
    """A target, drafters that agree with it sometimes, and what transformers' own `generate` writes."""

    def __init__(self, make: Callable, arch: str) -> None:
        self.reference = make(arch)
        self.target = wrap(make(arch))
        near = make(arch if arch in DENSE else "qwen3")
        if arch in DENSE:  # the target's weights with noise: sometimes right
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(3)
                for weight in near.parameters():
                    weight.data += 0.03 * weight.std() * torch.randn_like(weight)
        self.drafter = wrap(near)
        self.other = wrap(make("qwen2", seed=9, layers=3, vocab_size=300))  # another family, another padding
        self._written: dict[tuple, list[int]] = {}

    def truth(self, prompt: list[int]) -> list[int]:
        key = tuple(prompt)
        if key not in self._written:
            with torch.no_grad():
                ids = self.reference.generate(
                    torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None
                )
            self._written[key] = ids[0, len(prompt) :].tolist()
        return self._written[key]

    def decode(self, rule: DraftConfig, prompt: list[int], config: DecodeConfig, drafter=None):
        stats = DecodeStats()
        drafting = Drafter(drafter or self.drafter, rule, self.target.vocab_size)
        return list(speculative(Verifier(self.target), drafting, prompt=prompt, config=config, stats=stats)), stats


@pytest.fixture(scope="module")
def settings(tiny_model):
    made: dict[str, Setting] = {}

    def setting(arch: str) -> Setting:
        if arch not in made:
            made[arch] = Setting(tiny_model, arch)
        return made[arch]

    return setting


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("arch", DENSE)
def test_greedy_ids_are_the_targets_own(settings, arch, rule):
    setting = settings(arch)
    for gamma, prompt in product(range(1, 9), PROMPTS):
        events, stats = setting.decode(rule, prompt, DecodeConfig(max_new_tokens=NEW, gamma=gamma, eos_ids=()))
        assert [event.id for event in events] == setting.truth(prompt)
        assert stats.stop_reason == "length"
        assert sum(stats.accept_lengths) == stats.new_tokens == NEW


@pytest.mark.parametrize("arch", ["qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("rule", RULES[:4], ids=name)
def test_greedy_ids_with_targets_that_transformers_runs(settings, arch, rule):
    setting = settings(arch)
    for gamma, prompt in product((1, 3, 8), PROMPTS):
        events, _ = setting.decode(rule, prompt, DecodeConfig(max_new_tokens=NEW, gamma=gamma, eos_ids=()))
        assert [event.id for event in events] == setting.truth(prompt)


@pytest.mark.parametrize("arch", ALL)
def test_the_target_drafting_for_itself(settings, arch, tiny_model):
    """Every draft is accepted: recurrent states and caches must be right after full rounds too."""
    setting = settings(arch)
    for gamma in (1, 4):
        config = DecodeConfig(max_new_tokens=NEW, gamma=gamma, eos_ids=())
        events, stats = setting.decode(DraftConfig(mode="exact"), PROMPTS[2], config, drafter=wrap(tiny_model(arch)))
        assert [event.id for event in events] == setting.truth(PROMPTS[2])
        assert stats.acceptance_rate == 1


@pytest.mark.parametrize("arch", ALL)
def test_a_drafter_of_another_family_and_vocabulary(settings, arch):
    setting = settings(arch)
    for gamma in (1, 5):
        config = DecodeConfig(max_new_tokens=NEW, gamma=gamma, eos_ids=())
        events, _ = setting.decode(DraftConfig(mode="exact"), PROMPTS[2], config, drafter=setting.other)
        assert [event.id for event in events] == setting.truth(PROMPTS[2])


def test_these_drafters_are_sometimes_wrong(settings):
    for arch in DENSE:
        config = DecodeConfig(max_new_tokens=NEW, gamma=3, eos_ids=())
        _, stats = settings(arch).decode(DraftConfig(mode="exact"), PROMPTS[2], config)
        assert 0 < stats.acceptance_rate < 1


@pytest.mark.parametrize("rule", [RULES[0], RULES[3], RULES[9]], ids=name)
@pytest.mark.parametrize("arch", ["llama", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_every_limit_and_every_eos_position(settings, arch, rule):
    setting, prompt = settings(arch), PROMPTS[2]
    truth = setting.truth(prompt)
    for limit in range(NEW + 1):
        events, stats = setting.decode(rule, prompt, DecodeConfig(max_new_tokens=limit, gamma=5, eos_ids=()))
        assert [event.id for event in events] == truth[:limit]
        assert stats.stop_reason == "length"
    for place, token in enumerate(truth):
        first = truth.index(token)
        events, stats = setting.decode(rule, prompt, DecodeConfig(max_new_tokens=NEW, gamma=5, eos_ids=(9999, token)))
        assert [event.id for event in events] == truth[: first + 1], f"EOS at {place}"
        assert stats.stop_reason == "eos"


@pytest.mark.parametrize("arch", ALL)
def test_plain_decoding_is_the_targets_own(settings, arch):
    setting = settings(arch)
    for prompt in PROMPTS:
        stats = DecodeStats()
        config = DecodeConfig(max_new_tokens=NEW, eos_ids=())
        events = list(autoregressive(Verifier(setting.target), prompt, config=config, stats=stats))
        assert [event.id for event in events] == setting.truth(prompt)
        assert all(event.source == "target" for event in events)
        assert stats.rounds == NEW
        assert stats.acceptance_rate is None


SAMPLED = [rule for rule in RULES if rule.window == 2]
RUNS = 300


@pytest.fixture(scope="module")
def small(tiny_model):
    """A target and a drafter over five tokens; the target's exact joint distribution of two tokens."""
    target, drafter = (
        tiny_model("llama", seed=seed, layers=5, vocab_size=5 + seed, eos_token_id=None) for seed in (0, 1)
    )
    return wrap(target), wrap(drafter)


@pytest.mark.parametrize(
    ("rule", "filters"),
    [pytest.param(rule, {}, id=name(rule)) for rule in SAMPLED]
    + [pytest.param(SAMPLED[0], {"top_k": 4, "top_p": 0.9, "temperature": 1.5}, id="exact-filtered")],
)
def test_sampled_ids_follow_the_targets_distribution(small, rule, filters):
    target, drafter = small
    config = replace(DecodeConfig(max_new_tokens=2, gamma=3, temperature=2.0, eos_ids=()), **filters)
    prompt = [1, 3, 0]
    target.rewind(0)
    first = distribution(target.forward(torch.tensor(prompt))[-1:], config)[0]
    joint = torch.zeros(5, 5)
    for token in range(5):
        target.rewind(len(prompt))
        joint[token] = first[token] * distribution(target.forward(torch.tensor([token])), config)[0]
    counts = torch.zeros(5, 5)
    accepted = 0
    for seed in range(RUNS):
        stats = DecodeStats()
        drafting = Drafter(drafter, rule, target.vocab_size)
        events = list(
            speculative(Verifier(target), drafting, prompt=prompt, config=replace(config, seed=seed), stats=stats)
        )
        counts[events[0].id, events[1].id] += 1
        accepted += stats.accepted
    assert 0 < accepted < RUNS, "the test must see both accepted and rejected drafts"
    found, bound = chi_square(counts, joint)
    assert found <= bound


def test_a_seed_repeats_and_another_differs(small):
    target, drafter = small

    def ids(seed: int) -> list[int]:
        config = DecodeConfig(max_new_tokens=30, gamma=3, temperature=2.0, seed=seed, eos_ids=())
        drafting = Drafter(drafter, DraftConfig(mode="exact"), target.vocab_size)
        return [
            event.id
            for event in speculative(Verifier(target), drafting, prompt=[1, 3, 0], config=config, stats=DecodeStats())
        ]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
