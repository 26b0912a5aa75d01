"""A pair loaded with a profile: its rule, its costs, its threads, and when they are not used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.recordings import COSTS, SKIP, make_profile, save
from pdevis import DecodeConfig, DraftConfig, load_pair
from pdevis.chat import render
from pdevis.decoding.gamma import MAX_GAMMA
from pdevis.profile import Profile, this_machine


@pytest.fixture(scope="module")
def folder(tiny_folder) -> str:
    return str(tiny_folder("llama"))


def loaded(folder: str, profile: Profile, **changes: Any) -> Any:
    formats = {"target_precision": "float64", "draft_precision": "float64"} | changes
    before = torch.get_num_threads()
    try:
        pair = load_pair(folder, folder, device="cpu", profile=profile, **formats)
        assert torch.get_num_threads() == 1, "the profile's threads"
    finally:
        torch.set_num_threads(before)
    return pair


def test_a_pair_starts_with_the_rule_and_costs_of_the_profile(folder):
    pair = loaded(folder, make_profile(folder, folder))
    assert (pair.draft, pair.mode) == (SKIP, "skip")
    assert pair._auto.known == COSTS
    described = json.loads(json.dumps(pair.describe()))
    assert (described["profile"], described["threads"]) == ("tuned.json", 1)
    assert render.format_banner(described).endswith("profile tuned.json, 1 threads")
    pair.configure(replace(SKIP, threshold=0.5))
    assert pair._auto.known is None, "measured under another rule"
    pair.configure(replace(SKIP, mode="auto"))
    assert (pair.mode, pair._auto.known) == ("skip", COSTS)
    truth = pair.generate("Why?", DecodeConfig(max_new_tokens=8, eos_ids=()), "target")
    assert pair.generate("Why?", DecodeConfig(max_new_tokens=8, gamma="auto", eos_ids=())).ids == truth.ids


def test_costs_of_other_models_formats_or_machines_are_not_used(folder):
    pair = loaded(folder, make_profile(folder, folder), draft_precision="float32")
    assert (pair.mode, pair._auto.known) == ("skip", None)
    assert pair.describe()["profile"] == "tuned.json (made with another draft_precision)"
    pair = loaded(folder, make_profile(folder, folder, machine={"cpu": "Z80", "cores": 512}, threads=1))
    assert pair._auto.known is None
    assert "another cpu" in pair.describe()["profile"]


def test_mode_auto_is_exact_if_the_drafter_gives_no_access_to_sublayers(tiny_folder):
    pair = load_pair(
        str(tiny_folder("qwen3_moe")),
        device="cpu",
        draft=DraftConfig(),
        profile=make_profile(threads=None),
    )
    assert pair.mode == "exact"


def test_threads_are_limited_to_the_cores():
    assert make_profile(threads=10**6).usable_threads == this_machine()["cores"]


def test_load_pair_takes_the_file_of_a_profile(folder, tmp_path):
    path = save(make_profile(folder, folder, threads=None), tmp_path / "p.json")
    pair = load_pair(folder, folder, device="cpu", profile=path, target_precision="float64", draft_precision="float64")
    assert pair.mode == "skip"
    assert pair._auto.choose(MAX_GAMMA) == MAX_GAMMA, "the costs are known from the first round on"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a pdevis profile"):
        load_pair(folder, profile=path)
