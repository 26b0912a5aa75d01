"""`load_pair` and appInference under torchrun and with a device map, against a pair in one process.

This file is also the program of those processes: `torchrun test_torchrun_pair.py TARGET DRAFTER DRAFT_DEVICE MODES`.
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

from helpers.processes import APP, Row, one_object, torchrun
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
COUNTS = ("rounds", "drafted", "accepted", "skipped", "depth")  # statistics that do not depend on time


# ---- what the processes do ----


def decode(pair: SpeculativePair, modes: list[str]) -> Row:
    """The ids of all ways to decode, and the counts of the greedy ones."""
    plain = {name: pair.generate(PROMPT, GREEDY, name).ids for name in ("target", "drafter")}
    row: Row = {**plain, "long": pair.generate(LONG, GREEDY).ids, "counts": {}}
    for mode in modes:
        pair.configure(RULES[mode])
        greedy = pair.generate(PROMPT, GREEDY)
        row[mode] = greedy.ids
        row["counts"][mode] = [getattr(greedy.stats, name) for name in COUNTS]
        row[f"{mode} auto"] = pair.generate(PROMPT, replace(GREEDY, gamma="auto")).ids
        row[f"{mode} sampled"] = pair.generate(PROMPT, SAMPLED).ids
    stream = pair.stream(PROMPT, GREEDY)
    next(stream)
    stream.close()
    row["after a closed stream"] = pair.generate(PROMPT, GREEDY).ids
    next(pair.stream(PROMPT, GREEDY))
    row["after an abandoned stream"] = pair.generate(OTHER_PROMPT, GREEDY).ids
    row["plain, after an abandoned stream"] = pair.generate(OTHER_PROMPT, GREEDY, "target").ids
    pair.reset()
    row["after a reset"] = pair.generate(PROMPT, GREEDY).ids
    return row


def error_message(call: Callable[[], Any]) -> str:
    """The message of the ValueError that a call raises."""
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def lead(target: str, drafter: str, draft_device: str, modes: str) -> None:
    """Print the results of rank 0 as JSON; on the other ranks `load_pair` does not return."""
    devices = {"target_device": "ranks", "draft_device": draft_device or None}
    pair = load_pair(target, drafter, **devices, draft_precision="float32")
    row = decode(pair, modes.split(",")) | {"labels": pair.describe(), "devices": pair.workers and pair.workers.devices}
    row["again"] = error_message(lambda: load_pair(target, drafter, **devices))
    pair.close()
    if draft_device == "ranks":
        pair.reset()  # nothing to do, and no error
        row["closed"] = error_message(lambda: pair.generate(PROMPT, GREEDY))
    print(json.dumps(row), flush=True)


# ---- the tests ----


@pytest.mark.parametrize(
    ("family", "drafter", "draft_device"),
    [
        pytest.param("qwen3", "other", "ranks", marks=pytest.mark.slow),
        pytest.param("llama", "self", "", marks=pytest.mark.slow),
        pytest.param("llama", "self", "ranks", marks=pytest.mark.slow),
        pytest.param("llama", "other", "cpu", marks=pytest.mark.slow),
        pytest.param("llama", "other", "cpu:0", marks=pytest.mark.slow),  # in a worker process
        pytest.param("llama", "self", "cpu:0,cpu:1", marks=pytest.mark.slow),
    ],
)
def test_a_pair_under_torchrun_equals_one_in_one_process(
    folders: Callable[..., Any], family: str, drafter: str, draft_device: str
) -> None:
    target, other = folders(family)
    models, modes = ((target, "self"), list(RULES)) if drafter == "self" else ((target, other), ["parallel", "skip"])
    row = one_object(torchrun(__file__, *models, draft_device, ",".join(modes)))
    pair = load_pair(*models, device="cpu", target_precision="float32", draft_precision="float32")
    expected = decode(pair, modes)
    info = {name: row.pop(name) for name in ("labels", "devices", "again")}
    if draft_device == "ranks":
        assert info["devices"] == 2
        assert row.pop("closed") == "the ranks have stopped (closed): start the program again"
    assert "process group already initialised" in info["again"]
    assert info["labels"]["target_device"] == "2 ranks"
    assert info["labels"]["draft_device"] == (draft_device or "cpu")
    assert row == expected
    plain = row["target"]
    assert all(row[name] == plain for mode in modes for name in (mode, f"{mode} auto"))
    assert row["after a closed stream"] == row["after a reset"] == plain
    assert row["after an abandoned stream"] == row["plain, after an abandoned stream"]


@pytest.mark.slow
def test_a_drafter_without_sublayer_access(tiny_folder: Callable[..., Path]) -> None:
    """Every rank has the whole drafter."""
    models = str(tiny_folder("llama")), str(tiny_folder("qwen3_moe", seed=1))
    row = one_object(torchrun(__file__, *models, "ranks", "exact"))
    expected = decode(load_pair(*models, device="cpu", target_precision="float32"), ["exact"])
    assert row["devices"] == 1
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_settings_that_ranks_do_not_support(
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    if "int8" in words:
        monkeypatch.setattr(pair_builder, "under_torchrun", lambda: True)
        monkeypatch.setattr(pair_builder, "start_ranks", lambda: Ranks(0, 2, torch.device("cpu")))
    else:
        monkeypatch.delenv("RANK", raising=False)
    main, folder = runpy.run_path(APP)["main"], str(tiny_folder("llama"))
    capsys.readouterr()
    assert main(["--target_model", folder, "--prompt", "hi", "--no-chat", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


def test_auto_without_a_gpu_is_the_cpu(folders: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target, _ = folders("llama")
    pairs = [load_pair(target, target_device=name) for name in ("auto", "cpu")]
    assert pairs[0].describe() == pairs[1].describe()
    assert decode(pairs[0], list(RULES)) == decode(pairs[1], list(RULES))


@pytest.mark.parametrize("devices", ["auto", "cuda:0,cuda:1"])
def test_a_target_over_gpus(folders: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    """A pair with a target on several GPUs, which are the CPU here: test_model_builder.py tests the division."""
    cpu, reads = torch.device("cpu"), []
    several = MultiDevice((cpu,), auto=True) if devices == "auto" else MultiDevice((cpu, cpu))
    monkeypatch.setattr(pair_builder, "parse_devices", lambda text: several)
    monkeypatch.setattr(
        model_builder, "read_multi_device_model", lambda *args: reads.append(args) or read_model(*args[:2], cpu)
    )
    target, other = folders("qwen3")
    formats = {"draft_precision": "float32", "draft_device": "cpu"}
    pair = load_pair(target, other, target_device=devices, **formats)
    assert [(dtype, device_map) for _, dtype, device_map in reads] == [(torch.float32, several)]
    assert pair.labels["target_device"] == ("auto" if devices == "auto" else "cpu,cpu")
    whole = load_pair(target, other, target_device="cpu", target_precision="float32", **formats)
    assert decode(pair, list(RULES)) == decode(whole, list(RULES))


if __name__ == "__main__":
    lead(*sys.argv[1:])
