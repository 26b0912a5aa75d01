"""Penalties and biases with a drafter in other processes: lossless, greedy and sampled, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from helpers.processes import device_slots, remote_drafter, spec_of
from pdevis import DecodeConfig, DraftConfig, SpeculativePair, load_pair
from pdevis.controls.processors import PerDevice, make_processors
from pdevis.decoding.sampling import distribution, process
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.model_builder import build_model
from pdevis.parallel.worker_pool import WorkerPool

EXACT = {"target_device": "cpu", "target_precision": "float64", "draft_precision": "float64"}
PENALISED = DecodeConfig(
    max_new_tokens=24,
    gamma=3,
    eos_ids=(7,),
    repetition_penalty=1.3,
    presence_penalty=0.3,
    frequency_penalty=0.5,
    logit_bias={5: 2.0, 9: -1.0},
    suppress_tokens=(1, 2, 3),
    min_new_tokens=5,
    min_p=0.02,
    processors=(LogitsProcessorList([NoRepeatNGramLogitsProcessor(3)]),),
)
WAYS: dict[str, dict[str, Any]] = {
    "overlap": {"draft_device": "cpu", "overlap": True},
    "another core": {"draft_device": "cpu:0"},
    "lanes on two cores": {"draft_device": "cpu:0,cpu:1", "draft": DraftConfig("parallel", 0.5)},
}


@pytest.fixture(scope="module")
def models(
    tiny_folder: Callable[..., Path], tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """A target, and a drafter that is sometimes right: the target with some noise."""
    folder = tmp_path_factory.mktemp("models") / "noisy"
    shutil.copytree(tiny_folder("qwen3", layers=4), folder)
    noisy, random = tiny_model("qwen3", layers=4, dtype=torch.float32), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=random)
    noisy.save_pretrained(folder)
    return str(tiny_folder("qwen3", layers=4)), str(folder)


@pytest.fixture(scope="module", params=WAYS)
def pairs(request: pytest.FixtureRequest, models: tuple[str, str]) -> Iterator[tuple[SpeculativePair, SpeculativePair]]:
    """A pair whose drafter is in other processes, and one whose drafter is in this process."""
    options = WAYS[request.param]
    local = load_pair(*models, **EXACT, draft_device="cpu", draft=options.get("draft"))
    with load_pair(*models, **EXACT, **options) as remote:
        assert remote.workers is not None
        yield remote, local


@pytest.mark.parametrize("gamma", [1, 3, "auto"])
def test_greedy_text_is_the_targets_own(pairs: tuple[SpeculativePair, SpeculativePair], gamma: Any) -> None:
    remote, local = pairs
    accepted = 0
    for prompt in ([1, 2, 3], [5, 9, 5, 9], list(range(40))):
        config = replace(PENALISED, gamma=gamma, overlap=remote.workers.devices == 1)
        made = remote.generate(prompt, config)
        assert made.ids == local.generate(prompt, config, "target").ids
        assert remote.generate(prompt, config, "drafter").ids == local.generate(prompt, config, "drafter").ids
        accepted += made.stats.accepted
    assert accepted > 0 or gamma == "auto", "so small a target is faster alone"


def test_sampled_text_is_that_of_a_drafter_in_this_process(pairs: tuple[SpeculativePair, SpeculativePair]) -> None:
    remote, local = pairs
    if remote.workers.devices > 1:
        local.configure(replace(local.draft, mode="exact"))  # lanes on devices check in another order
        remote.configure(replace(remote.draft, mode="exact"))
    accepted = 0
    for seed in range(6):
        config = replace(PENALISED, temperature=1.2, seed=seed)
        made, expected = (pair.generate([1, 2, 3], config) for pair in pairs)
        assert made.ids == expected.ids
        assert not set(made.ids) & set(PENALISED.suppress_tokens)
        accepted += made.stats.accepted
    assert accepted > 0


def test_processors_that_cannot_be_sent_are_refused(pairs: tuple[SpeculativePair, SpeculativePair]) -> None:
    remote, local = pairs
    message = r"processors: a drafter in other processes needs functions that can be pickled \(.*lambda"
    with pytest.raises(ValueError, match=message):
        remote.generate([1, 2, 3], processors=(lambda ids, logits: logits,), max_new_tokens=4)
    plain = remote.generate([1, 2, 3], max_new_tokens=8, eos_ids=())
    assert plain.ids == local.generate([1, 2, 3], max_new_tokens=8, eos_ids=(), method="target").ids


@pytest.mark.slow
def test_sampled_text_with_overlap_has_the_processed_distribution(tiny_folder: Callable[..., Path]) -> None:
    """The first two sampled tokens over many seeds against the exact distribution (total variation)."""
    folders = (tiny_folder("llama", layers=2, vocab_size=16, seed=seed, eos_token_id=None) for seed in (0, 1))
    target_spec, draft_spec = map(spec_of, folders)
    target, prompt, count = build_model(target_spec), [3, 1, 4], 1500
    base = DecodeConfig(6, 2, temperature=1.2, eos_ids=(), overlap=True, frequency_penalty=1.5, min_p=0.02)
    base = replace(base, logit_bias={2: 1.0}, suppress_tokens=(5,), repetition_penalty=1.4)
    config = replace(base, processors=make_processors(base, prompt_tokens=len(prompt)))
    exact = torch.zeros(16, 16)
    with torch.inference_mode():

        def following(ids: list[int]) -> torch.Tensor:
            target.rewind(0)
            logits = target.forward(torch.tensor(ids))[-1:]
            return distribution(process(config, ids, logits), config)[0]

        first = following(prompt)
        for token in range(16):
            exact[token] = first[token] * following([*prompt, token])
    seen, ahead = torch.zeros(16, 16), 0
    workers = WorkerPool(draft_spec, device_slots(1), target_vocab=16, min_ahead_probability=0.0)
    try:
        drafter = remote_drafter(workers, DraftConfig("exact"))
        for seed in range(count):
            stats = DecodeStats()
            events = speculative(
                Verifier(target), drafter, prompt=prompt, config=replace(config, seed=seed), stats=stats
            )
            ids = [event.id for event in events]
            seen[ids[0], ids[1]] += 1 / count
            ahead += stats.ahead_rounds
    finally:
        workers.close()
    noise = (exact * (1 - exact) / count).sqrt().sum() * 0.4  # expected distance of a true sample
    assert 0.5 * (seen - exact).abs().sum() < 1.3 * noise + 0.01
    assert ahead > 0


def test_a_processor_is_made_for_each_device_and_after_each_journey() -> None:
    made: list[torch.device] = []

    def make(device: torch.device) -> Any:
        made.append(device)
        return lambda ids, logits: logits + torch.ones(1, device=device)

    processor = PerDevice(make)
    cpu, meta = torch.device("cpu"), torch.device("meta")
    for device in (cpu, meta, cpu, meta):
        changed = processor(torch.zeros(1, 2, dtype=torch.long, device=device), torch.zeros(1, 4, device=device))
        assert changed.device == device
    assert made == [cpu, meta]
    config = DecodeConfig(logit_bias={3: 1}, min_new_tokens=2, eos_ids=(1,), suppress_tokens=(2,), repetition_penalty=2)
    for processor in make_processors(config, prompt_tokens=1):
        for device in (cpu, meta):
            ids, logits = torch.ones(1, 2, dtype=torch.long, device=device), torch.zeros(1, 4, device=device)
            assert processor(ids, logits).device == device
