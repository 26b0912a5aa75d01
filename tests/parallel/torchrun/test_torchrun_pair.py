"""`load_pair` and appInference on the ranks that torchrun starts, against a pair in one process; and spread over GPUs.

This file is also the program of those processes: `torchrun test_ranks_pair.py TARGET DRAFTER DRAFT_DEVICE MODES`.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.torchrun_runs import APP, Row, one_object, torchrun
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.devices import MultiDevice
from pdevis.loading import model_builder, pair_builder
from pdevis.loading.checkpoint import read_model
from pdevis.pair import SpeculativePair, load_pair
from pdevis.parallel.torchrun.process_group import Ranks

PROMPT, OTHER_PROMPT = [3, 14, 15, 92, 65], [7, 8, 9]
LONG = [(7 * i) % 250 for i in range(300)]  # longer than a message's first part
GREEDY = DecodeConfig(max_new_tokens=10, gamma=4, eos_ids=())
SAMPLED = replace(GREEDY, temperature=1.0, seed=5)
RULES = {
    "exact": DraftConfig("exact"),
    "parallel": DraftConfig("parallel", -2.0, window=3, keep_first=1),
    "skip": DraftConfig("skip", 0.5, "inline", keep_first=1),
}
COUNTS = ("rounds", "drafted", "accepted", "skipped", "depth")  # what does not depend on time


# ---- what the processes do ----


def decode(pair: SpeculativePair, modes: list[str]) -> Row:
    """The ids of every way to decode, and the counts of the greedy ones."""
    plain = {name: pair.generate(PROMPT, GREEDY, name).ids for name in ("target", "drafter")}
    found: Row = {**plain, "long": pair.generate(LONG, GREEDY).ids, "counts": {}}
    for mode in modes:
        pair.configure(RULES[mode])
        greedy = pair.generate(PROMPT, GREEDY)
        found[mode] = greedy.ids
        found["counts"][mode] = [getattr(greedy.stats, name) for name in COUNTS]
        found[f"{mode} auto"] = pair.generate(PROMPT, replace(GREEDY, gamma="auto")).ids
        found[f"{mode} sampled"] = pair.generate(PROMPT, SAMPLED).ids
    left = pair.stream(PROMPT, GREEDY)
    next(left)
    left.close()
    found["after a closed one"] = pair.generate(PROMPT, GREEDY).ids
    next(pair.stream(PROMPT, GREEDY))
    found["after one that was left"] = pair.generate(OTHER_PROMPT, GREEDY).ids
    found["plain, after one that was left"] = pair.generate(OTHER_PROMPT, GREEDY, "target").ids
    pair.reset()
    found["after a reset"] = pair.generate(PROMPT, GREEDY).ids
    return found


def refusal(work: Callable[[], Any]) -> str:
    """The one line of a ValueError."""
    with pytest.raises(ValueError) as caught:
        work()
    return str(caught.value)


def lead(target: str, drafter: str, draft_device: str, modes: str) -> None:
    """Rank 0 prints what it has found as JSON; the others do not come back from `load_pair`."""
    where = {"target_device": "ranks", "draft_device": draft_device or None}
    pair = load_pair(target, drafter, **where, draft_precision="float32")
    row = decode(pair, modes.split(",")) | {"labels": pair.describe(), "devices": pair.workers and pair.workers.devices}
    row["again"] = refusal(lambda: load_pair(target, drafter, **where))
    pair.close()
    if draft_device == "ranks":
        pair.reset()  # nothing to do, and no reason to complain
        row["closed"] = refusal(lambda: pair.generate(PROMPT, GREEDY))
    print(json.dumps(row), flush=True)


# ---- the tests ----


@pytest.mark.parametrize(
    ("family", "drafter", "draft_device"),
    [
        ("qwen3", "other", "ranks"),
        ("llama", "self", ""),
        pytest.param("llama", "self", "ranks", marks=pytest.mark.slow),
        pytest.param("llama", "other", "cpu", marks=pytest.mark.slow),
        pytest.param("llama", "other", "cpu:0", marks=pytest.mark.slow),  # in a process of its own
        pytest.param("llama", "self", "cpu:0,cpu:1", marks=pytest.mark.slow),
    ],
)
def test_a_pair_on_ranks_equals_one_in_one_process(
    folders: Callable[..., Any], family: str, drafter: str, draft_device: str
) -> None:
    target, other = folders(family)
    models, modes = ((target, "self"), list(RULES)) if drafter == "self" else ((target, other), ["parallel", "skip"])
    found = one_object(torchrun(__file__, *models, draft_device, ",".join(modes)))
    whole = load_pair(*models, device="cpu", target_precision="float32", draft_precision="float32")
    wanted = decode(whole, modes)
    told = {name: found.pop(name) for name in ("labels", "devices", "again")}
    if draft_device == "ranks":
        assert told["devices"] == 2
        assert found.pop("closed") == "the ranks have stopped (closed): start the program again"
    assert "they have met before" in told["again"]
    assert told["labels"]["target_device"] == "2 ranks"
    assert told["labels"]["draft_device"] == (draft_device or "cpu")
    assert found == wanted
    plain = found["target"]
    assert all(found[name] == plain for mode in modes for name in (mode, f"{mode} auto"))
    assert found["after a closed one"] == found["after a reset"] == plain
    assert found["after one that was left"] == found["plain, after one that was left"]


@pytest.mark.slow
def test_a_drafter_whose_sublayers_cannot_be_reached(tiny_folder: Callable[..., Path]) -> None:
    """It is whole on every rank."""
    models = str(tiny_folder("llama")), str(tiny_folder("qwen3_moe", seed=1))
    found = one_object(torchrun(__file__, *models, "ranks", "exact"))
    wanted = decode(load_pair(*models, device="cpu", target_precision="float32"), ["exact"])
    assert found["devices"] == 1
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device_target", "ranks"], "target_device = 'ranks': needs torchrun --nproc_per_node N"),
        (["--device", "ranks"], "target_device = 'ranks': needs torchrun --nproc_per_node N"),
        (["--device_drafter", "ranks"], "draft_device = 'ranks': needs target_device = 'ranks', and no overlap"),
        (["--device", "ranks", "--overlap"], "draft_device = 'ranks': needs target_device = 'ranks', and no overlap"),
        (
            ["--device", "ranks", "--target_precision", "int8"],
            "target_precision = 'int8': only for llama",
        ),
    ],
)
def test_what_ranks_do_not_go_with(
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    if "int8" in words:
        monkeypatch.setattr(pair_builder, "under_torchrun", lambda: True)
        monkeypatch.setattr(pair_builder, "start_ranks", lambda: Ranks(0, 2, torch.device("cpu")))
    else:
        monkeypatch.delenv("RANK", raising=False)
    main, folder = runpy.run_path(APP)["main"], str(tiny_folder("llama"))
    capsys.readouterr()
    assert main(["--target_model", folder, "--prompt", "hi", "--no-chat", *words]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith(f"error: {said}")
    assert seen.err.count("\n") == 1


def test_auto_without_a_gpu_is_the_cpu(folders: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target, _ = folders("llama")
    pairs = [load_pair(target, target_device=name) for name in ("auto", "cpu")]
    assert pairs[0].describe() == pairs[1].describe()
    assert decode(pairs[0], list(RULES)) == decode(pairs[1], list(RULES))


@pytest.mark.parametrize("devices", ["auto", "cuda:0,cuda:1"])
def test_a_target_over_gpus(folders: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    """A pair with a target on several GPUs, which are the CPU here: test_model_builder.py tests the division."""
    cpu, read = torch.device("cpu"), []
    several = MultiDevice((cpu,), auto=True) if devices == "auto" else MultiDevice((cpu, cpu))
    monkeypatch.setattr(pair_builder, "parse_devices", lambda text: several)
    monkeypatch.setattr(
        model_builder, "read_multi_device_model", lambda *args: read.append(args) or read_model(*args[:2], cpu)
    )
    target, other = folders("qwen3")
    formats = {"draft_precision": "float32", "draft_device": "cpu"}
    pair = load_pair(target, other, target_device=devices, **formats)
    assert [(dtype, where) for _, dtype, where in read] == [(torch.float32, several)]
    assert pair.labels["target_device"] == ("auto" if devices == "auto" else "cpu,cpu")
    whole = load_pair(target, other, target_device="cpu", target_precision="float32", **formats)
    assert decode(pair, list(RULES)) == decode(whole, list(RULES))


if __name__ == "__main__":
    lead(*sys.argv[1:])
