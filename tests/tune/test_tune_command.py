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
from pdevis.config import DraftConfig
from pdevis.profile import read_profile
from pdevis.tune import tune_run
from pdevis.tune.__main__ import build_parser, main
from pdevis.tune.selection import rules
from pdevis.tune.timing import WIDTHS


@pytest.fixture
def command(tiny_folder, tmp_path, capsys) -> Any:
    models = ["--target_model", str(tiny_folder("llama", seed=0)), "--drafter_model", str(tiny_folder("llama", seed=1))]
    few = ["--device", "cpu", "--prompts", "2", "--length", "6", "--repeats", "1", "--thresholds", "0.5"]

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [*models, *few, "--output", str(tmp_path / "tuned.json"), *argv]
        try:
            code = main(words)
        except SystemExit as leaving:
            code = leaving.code
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
    assert profile.models["target_precision"] == "auto", "as asked for"
    assert profile.pair["target_precision"] in ("packed", "float32"), "as it became"
    assert set(profile.costs.verify_seconds) == set(WIDTHS)
    content = json.loads((tmp_path / "tuned.json").read_text())
    assert [each["draft"]["mode"] for each in content["candidates"]] == ["exact", "skip", "parallel"]
    assert len(content["measured"]["divergences"]) == 4
    assert content["check"]["same_tokens"] is True
    assert set(content["check"]["rates"]) == {"plain", "fixed", "auto"}
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]


def test_formats_are_compared(command, tmp_path):
    code, out, err = command("--formats", "float32/float32,float64/float32", "--modes", "exact")
    assert code == 0, err
    assert "Weight formats" in out
    content = json.loads((tmp_path / "tuned.json").read_text())
    chosen = content["settings"]["target_precision"]
    assert {chosen, content["other_formats"][0]["formats"].partition("/")[0]} == {"float32", "float64"}


def test_a_drafter_that_hides_its_sublayers(command, tiny_folder):
    code, out, err = command("--drafter_model", str(tiny_folder("qwen3_moe")))
    assert code == 0, err
    assert "divergence by layer" not in out


def test_what_is_there_is_not_replaced_unasked(command, tmp_path):
    (tmp_path / "tuned.json").write_text("mine")
    code, out, err = command()
    assert (code, out) == (2, "")
    assert "--overwrite replaces it" in err
    assert (tmp_path / "tuned.json").read_text() == "mine"
    assert command("--overwrite", "--modes", "exact")[0] == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prompts", "99"], "--prompts: 99 must be at most"),
        (["--prompts", "0"], "--prompts: '0' must be an integer >= 1"),
        (["--modes", "fast"], "'fast' must be among exact, skip, parallel"),
        (["--thresholds", "x"], "--thresholds: 'x'"),
        (["--formats", "packed"], "'packed' must be TARGET/DRAFTER"),
        (["--formats", "float32/float32", "--draft_precision", "int8"], "leave --target_precision"),
        (["--formats", "float31/float32"], "'float31'"),
        (["--output", "/dev/null/there.json"], "/dev/null is a file, not a folder"),
        (["--profile", "p.json"], "unknown flag --profile"),
        (["--target_model", "qwen-9b"], "did you mean"),
    ],
)
def test_mistakes_are_one_line_and_code_2(command, argv, said):
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
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
    assert replace(DraftConfig(), mode="exact") in rules(args.modes, args.thresholds, True)
