"""Profiles: the file, --profile in every script, and a pair loaded with one: its rule, its costs, its threads."""

from __future__ import annotations

import argparse
import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ROOT
from helpers.recordings import COSTS, SKIP, make_profile, save
from pdevis import load_pair
from pdevis.chat import render
from pdevis.cli import Parser, add_draft_flags, add_model_flags, pair_arguments
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.controls.decode_flags import add_decode_flags, decode_config
from pdevis.decoding.gamma import MAX_GAMMA
from pdevis.profile import Profile, read_profile, this_machine

SCRIPTS = ["appInference.py", *(f"evaluation/{name}/evaluate_{name}.py" for name in ("mmlu", "specbench", "speed"))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(make_profile(), tmp_path / "tuned.json")


def make_parser() -> Parser:
    parser = Parser(prog="script")
    add_model_flags(parser)
    add_draft_flags(parser)
    add_decode_flags(parser)
    return parser


def test_a_written_profile_is_read_back(file):
    assert read_profile(file) == make_profile()
    content = json.loads(file.read_text())
    assert content["settings"]["draft"]["mode"] == "skip"
    assert content["candidates"] == []
    auto = make_profile(gamma="auto", threads=None)
    assert read_profile(save(auto, file)) == auto


def test_a_profile_becomes_the_defaults_and_an_explicit_flag_wins(file, capsys):
    args = make_parser().parse_args(["--profile", str(file)])
    arguments = pair_arguments(args)
    assert (arguments["target"], arguments["drafter"], arguments["device"]) == ("big", "small", "cpu")
    assert (arguments["draft"], arguments["draft_precision"], arguments["profile"]) == (SKIP, "float64", str(file))
    assert decode_config(args).gamma == 7
    argv = ["--gamma", "4", "--threshold=0.9", "--draft-mode", "exact", "--profile", str(file), "--keep_first", "2"]
    args = make_parser().parse_args(argv)
    assert decode_config(args).gamma == 4, "the default, but given"
    assert pair_arguments(args)["draft"] == DraftConfig(mode="exact")
    assert capsys.readouterr().err == ""


def test_without_a_profile_nothing_changes():
    args = make_parser().parse_args([])
    assert "profile" not in pair_arguments(args)
    assert decode_config(args) == DecodeConfig()


def test_a_device_flag_overrides_all_device_flags_of_the_profile(tmp_path):
    models = make_profile().models | {"target_device": "cuda:1"}
    file = save(make_profile(models=models), tmp_path / "p.json")
    assert make_parser().parse_args(["--profile", str(file)]).target_device == "cuda:1"
    args = make_parser().parse_args(["--profile", str(file), "--device", "cpu"])
    assert (args.device, args.target_device) == ("cpu", None)


def test_a_profile_for_another_pair_or_machine_is_a_note_on_stderr(file, tmp_path, capsys):
    make_parser().parse_args(["--profile", str(file), "--target_model", "other", "--draft_precision", "int8"])
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "target big, here other; draft_precision float64, here int8" in text
    moved = save(make_profile(machine={"cpu": "Z80", "cores": 512}), tmp_path / "moved.json")
    make_parser().parse_args(["--profile", str(moved)])
    assert "cpu Z80, here" in capsys.readouterr().err


def test_two_paths_of_one_folder_are_no_difference(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    profile = make_profile(target=str(tmp_path / "model"))
    assert profile.differences({"target": "model", "target_device": "cpu", "draft_precision": "auto"}) == []
    assert profile.differences({"target": "elsewhere"}) != []


def break_profile(file: Path, change: str) -> None:
    """Make a profile unusable in one way."""
    content = json.loads(file.read_text())
    if change == "format":
        del content["format"]
    elif change == "version":
        content["version"] = 2
    elif change == "mode":
        content["settings"]["draft"]["mode"] = "fast"
    elif change == "field":
        content["settings"]["draft"]["speed"] = 1
    elif change == "gamma":
        content["settings"]["gamma"] = 0
    elif change == "threads":
        content["settings"]["threads"] = 0
    elif change == "setting":
        content["settings"]["lengths"] = 3
    elif change == "costs":
        del content["costs"]["acceptance"]
    elif change == "seconds":
        content["costs"]["draft_seconds"] = -1
    elif change == "models":
        content["settings"]["target_model"] = None
    elif change == "pair":
        content["pair"] = []
    text = json.dumps(content)
    file.write_text(text[:-20] if change == "truncated" else "[]" if change == "list" else text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("format", "is not a pdevis profile"),
        ("list", "is not a pdevis profile"),
        ("truncated", "not JSON"),
        ("version", "has version 2, must be 1"),
        ("mode", "mode = 'fast': must be one of"),
        ("field", "speed"),
        ("gamma", "gamma = 0"),
        ("threads", "threads = 0"),
        ("setting", "unknown setting lengths"),
        ("costs", "acceptance is missing"),
        ("seconds", "draft_seconds = -1: must be a number > 0"),
        ("models", "target_model = None"),
        ("pair", "broken profile"),
    ],
)
def test_an_unusable_file_is_one_line_and_exit_code_2(file, capsys, change, message):
    break_profile(file, change)
    with pytest.raises(SystemExit) as leaving:
        make_parser().parse_args(["--profile", str(file)])
    text = capsys.readouterr().err
    assert leaving.value.code == 2
    assert text.count("\n") == 1
    assert text.startswith("error: --profile")
    assert message in text


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_file_that_cannot_be_read(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as leaving:
        make_parser().parse_args(["--profile", str(tmp_path / name)])
    assert leaving.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_takes_a_profile(file, script):
    parser = runpy.run_path(str(ROOT / script))["build_parser"]()
    args = parser.parse_args(["--profile", str(file), "--window", "3"])
    assert (args.target_model, args.draft_mode, args.threshold, args.window) == ("big", "skip", 0.95, 3)
    assert pair_arguments(args)["profile"] == str(file)


def test_flags_that_a_script_hides_keep_their_values(file):
    parser = runpy.run_path(str(ROOT / "evaluation/ablation/evaluate_ablation.py"))["build_parser"]()
    args = parser.parse_args(["--profile", str(file)])
    assert (args.draft_mode, args.gamma, args.keep_first) == (None, None, 1)


def test_all_scripts_with_drafting_flags_take_a_profile():
    for path in [ROOT / "appInference.py", *ROOT.glob("evaluation/*/*.py")]:
        parser = runpy.run_path(str(path))["build_parser"]()
        dests = {action.dest for action in parser._actions}
        assert ("profile" in dests) == ("draft_mode" in dests), path


def test_a_namespace_without_profile_has_no_profile_argument():
    args = argparse.Namespace(**vars(make_parser().parse_args([])))
    del args.profile
    assert "profile" not in pair_arguments(args)


# ---- a pair loaded with a profile ----


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
