"""python -m pdevis.tune: from flags to tables and a profile, with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import ROOT
from pdevis.calibrate import schedule_source
from pdevis.config import DraftConfig
from pdevis.pair import load_pair
from pdevis.profile import read_profile
from pdevis.tune import tune_run
from pdevis.tune.__main__ import build_parser, main
from pdevis.tune.selection import rules_to_try
from pdevis.tune.timing import WIDTHS


@pytest.fixture
def command(tiny_folder, tmp_path, tmp_path_factory, capsys, monkeypatch) -> Any:
    models = ["--target_model", str(tiny_folder("llama", seed=0)), "--drafter_model", str(tiny_folder("llama", seed=1))]
    short = ["--device", "cpu", "--prompts", "2", "--length", "6", "--repeats", "1", "--thresholds", "0.5"]
    short += ["--retentions", "0.1"]
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("PART_POSITIONS", "SCHEDULE_POSITIONS"):
        monkeypatch.setattr(schedule_source, name, 16)

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([*models, *short, "--output", str(tmp_path / "tuned.json"), *argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_from_command_to_profile(command, tiny_folder, tmp_path):
    before = torch.get_num_threads()
    code, out, err = command()
    assert code == 0, err
    assert torch.get_num_threads() == before
    for part in (
        "Threads",
        "A forward over k tokens",
        "divergence by layer",
        "drafting rule",
        "plain decoding",
        "chosen",
    ):
        assert part in out
    assert "written" in err
    profile = read_profile(tmp_path / "tuned.json")
    assert profile.models["target_model"] == str(tiny_folder("llama", seed=0))
    assert profile.models["target_precision"] == "auto", "as given by the flag"
    assert profile.pair["target_precision"] in ("packed", "float32"), "resolved"
    assert set(profile.costs.verify_seconds) == set(WIDTHS)
    content = json.loads((tmp_path / "tuned.json").read_text())
    rules = [candidate["draft"] for candidate in content["candidates"]]
    assert [rule["mode"] for rule in rules[:3]] == ["exact", "skip", "parallel"]
    assert all(rule["check"] == "static" and rule["schedule"] for rule in rules[3:])
    assert len(content["measured"]["divergences"]) == 4
    assert content["check"]["same_tokens"] is True
    assert set(content["check"]["rates"]) == {"plain", "fixed", "auto"}
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]


def test_a_profile_with_a_static_schedule_is_used(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_run, "choose_candidate", lambda candidates: candidates[-1])
    code, out, err = command("--modes", "skip", "--retentions", "0")
    assert code == 0, err
    assert "chosen: skip static retention 0" in out
    profile = read_profile(tmp_path / "tuned.json")
    assert (profile.draft.mode, profile.draft.check) == ("skip", "static")
    models = [profile.models[name] for name in ("target_model", "drafter_model")]
    pair = load_pair(*models, device="cpu", profile=profile)
    assert pair.describe()["schedule"] == profile.draft.schedule
    assert load_pair(*models, device="cpu", profile=profile, draft=DraftConfig()).mode == "skip"


def test_formats_are_compared(command, tmp_path):
    code, out, err = command("--formats", "float32/float32,float64/float32", "--modes", "exact")
    assert code == 0, err
    assert "Weight formats" in out
    content = json.loads((tmp_path / "tuned.json").read_text())
    chosen = content["settings"]["target_precision"]
    assert {chosen, content["other_formats"][0]["formats"].partition("/")[0]} == {"float32", "float64"}


def test_a_drafter_without_sublayer_access(command, tiny_folder):
    code, out, err = command("--drafter_model", str(tiny_folder("qwen3_moe")))
    assert code == 0, err
    assert "divergence by layer" not in out


def test_an_existing_profile_is_replaced_only_with_overwrite(command, tmp_path):
    (tmp_path / "tuned.json").write_text("mine")
    code, out, err = command()
    assert (code, out) == (2, "")
    assert "--overwrite replaces it" in err
    assert (tmp_path / "tuned.json").read_text() == "mine"
    assert command("--overwrite", "--modes", "exact")[0] == 0


def test_a_missing_output_folder_is_created_and_reported(command, tmp_path):
    path = tmp_path / "new" / "tuned.json"
    code, _, err = command("--output", str(path), "--modes", "exact")
    assert code == 0
    assert err.splitlines()[0] == f"created the folder {path.parent}"
    assert read_profile(path).name == "tuned.json"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompts", "99"], "--prompts: 99 must be at most"),
        (["--prompts", "0"], "--prompts: '0' must be an integer >= 1"),
        (["--modes", "fast"], "'fast' must be among exact, skip, parallel"),
        (["--thresholds", "x"], "--thresholds: 'x'"),
        (["--retentions", "1.5"], "--retentions: 1.5 must be a finite number >= 0 and <= 1"),
        (["--formats", "packed"], "'packed' must be TARGET/DRAFTER"),
        (["--formats", "float32/float32", "--draft_precision", "int8"], "leave --target_precision"),
        (["--formats", "float31/float32"], "'float31'"),
        (["--output", "/dev/null/there.json"], "/dev/null is a file, not a folder"),
        (["--profile", "p.json"], "unknown flag --profile"),
        (["--target_model", "qwen-9b"], "did you mean"),
    ],
)
def test_mistakes_are_one_line_and_code_2(command, argv, message):
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_ctrl_c_writes_nothing(command, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    monkeypatch.setattr(tune_run, "try_rules", stop)
    code, out, err = command()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("stopped: ")
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == before


def test_help_needs_no_torch():
    probe = "import sys, pdevis.tune.__main__ as m; m.build_parser().format_help(); print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", probe], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "False", run.stderr


def test_the_flags_have_both_spellings():
    args = build_parser().parse_args(["--target-model", "a", "--drafter_model", "b"])
    assert (args.target_model, args.drafter_model) == ("a", "b")
    assert replace(DraftConfig(), mode="exact") in rules_to_try(args.modes, args.thresholds, True)
