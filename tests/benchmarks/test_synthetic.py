"""Drawn acceptance: it has the probability asked for, is marked everywhere, and exists in evaluate_speed alone."""

from __future__ import annotations

import json
import runpy

import pytest

from helpers import ROOT
from pdevis import DecodeConfig, load_pair
from pdevis.benchmarks.speed.speed_plot import plot_speed
from pdevis.benchmarks.speed.speed_report import load_speed
from pdevis.benchmarks.synthetic import drawn_acceptance
from pdevis.decoding.verifier import Verifier

SCRIPT = ROOT / "evaluation" / "speed" / "evaluate_speed.py"


@pytest.mark.parametrize("acceptance", [0.6, *(pytest.param(end, marks=pytest.mark.slow) for end in (0.0, 1.0))])
def test_acceptance_is_drawn_with_its_probability(folders, acceptance):
    pair = load_pair(*folders("llama"), device="cpu")
    config = DecodeConfig(max_new_tokens=300, gamma=4, eos_ids=())
    with drawn_acceptance(pair, acceptance):
        stats = pair.generate("Hello", config).stats
        again = pair.generate("Hello", config).stats
    rejected = sum(length <= 4 for length in stats.accept_lengths)  # rounds that ended at a rejected token
    assert stats.accepted / (stats.accepted + rejected) == pytest.approx(acceptance, abs=0.08)
    assert again.accept_lengths == stats.accept_lengths, "the same draws in each run"
    assert pair.make_verifier is Verifier
    assert pair.generate("Hello", config).ids == pair.generate("Hello", config, "target").ids


def test_every_output_says_so(tiny_folder, tmp_path, capsys):
    folder, output = str(tiny_folder("llama")), tmp_path / "speed.json"
    main = runpy.run_path(str(SCRIPT))["main"]
    flags = ["--target_model", folder, "--device", "cpu", "--prompts", "1", "--length", "12", "--no_memory"]
    code = main([*flags, "--synthetic_acceptance", "0.5", "--without", "transformers", "--output", str(output)])
    out = capsys.readouterr().out
    assert code == 0
    assert "SYNTHETIC: acceptance is drawn, 0.5 per position" in out
    assert "SYNTHETIC β=0.5" in out
    assert "synthetic acceptance: ids not compared" in out
    result = json.loads(output.read_text())
    assert result["settings"]["synthetic_acceptance"] == 0.5
    assert all("SYNTHETIC" in row["name"] for row in result["rows"] if row["kind"] == "speculative")
    figure = plot_speed([load_speed(output)])
    assert "SYNTHETIC" in figure.subfigs[0].get_suptitle()


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "many"])
def test_wrong_probabilities_are_one_line(value, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit) as error:
        main([f"--synthetic_acceptance={value}"])
    assert error.value.code == 2
    assert f"'{value}' must be a number >= 0 and <= 1" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["appInference.py", "evaluation/mmlu/evaluate_mmlu.py"])
def test_other_scripts_refuse_it(script, capsys):
    main = runpy.run_path(str(ROOT / script))["main"]
    with pytest.raises(SystemExit) as error:
        main(["--synthetic_acceptance", "0.5"])
    assert error.value.code == 2
    assert "--synthetic_acceptance" in capsys.readouterr().err
