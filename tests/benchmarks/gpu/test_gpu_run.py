"""evaluate_gpu.py on the CPU at tiny shapes: parts, saving, resuming, mistakes, summary and plot."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest
import torch

from helpers import ROOT
from helpers.evaluation import script_of
from pdevis.benchmarks.gpu import gpu_run, model_costs
from pdevis.benchmarks.gpu.device_times import bytes_per_token
from pdevis.benchmarks.gpu.gpu_plot import plot_gpu
from pdevis.benchmarks.gpu.gpu_report import draft_rows, head_lines, pair_rows, read_gpu, target_rows
from pdevis.benchmarks.gpu.model_costs import pairs_schedule
from pdevis.drafting.schedule import parse_schedule
from pdevis.loading.catalog import PUBLISHED_CONFIGS

CPU = torch.device("cpu")
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "vocab_size": 272}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys) -> Any:
    for key in {*gpu_run.DRAFTERS, *gpu_run.TARGETS}:
        monkeypatch.setitem(PUBLISHED_CONFIGS, key, PUBLISHED_CONFIGS[key] | TINY)
    monkeypatch.setattr(gpu_run, "run_tests", lambda root: {"exit_code": 0, "last_line": "3 skipped"})
    monkeypatch.setattr(model_costs, "start_graphs", lambda stack, role, log: log("note: no graphs here"))
    main = runpy.run_path(str(script_of("gpu")))["main"]

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(["--output", str(tmp_path / "gpu.json"), "--device", "cpu", "--quick", *argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_all_parts(run, tmp_path, capsys):
    wanted = "bandwidth,exactness,drafter llama-1b,drafter llama-3b,target,pair llama,tests,transformers llama"
    code, out, err = run("--parts", wanted)
    assert code == 0, err
    result = read_gpu(tmp_path / "gpu.json")
    parts = result["parts"]
    assert result["device"] == "cpu"
    assert parts["exactness"]["equal"] == parts["exactness"]["prompts"] == 4
    assert parts["exactness"]["acceptance_rate"] > 0.9, "the drafter has the target's weights"
    steps = parts["drafter llama-3b"]["steps"]
    assert [*steps] == ["exact, eager", "exact, graphs", "static 1.5x, graphs", "static 1.7x, graphs"]
    assert [*parts["transformers llama-1b"]["steps"]] == ["transformers, static cache"]
    assert all(step["ms"] > 0 for step in steps.values())
    assert [*parts["target llama-8b"]["verify_ms"]] == ["1", "2", "4", "8", "16"]
    assert parts["target llama-8b"]["transformers_ms_per_token"] > 0
    assert parts["target qwen-8b"]["transformers_ms_per_token"] is None
    pair = parts["pair llama-8b llama-1b"]
    assert {(row["mode"], row["acceptance"]) for row in pair["rows"]} == {
        (mode, acceptance) for mode in ("exact", "static") for acceptance in (0.7, 0.8)
    }
    for text in (
        "3 skipped",
        "llama-3b, static 1.7x, graphs",
        "llama-1b, transformers, static cache",
        "SYNTHETIC",
        "4 equal to plain decoding's",
    ):
        assert text in out
    check_summary(tmp_path, capsys)


def check_summary(tmp_path, capsys) -> None:
    main = runpy.run_path(str(ROOT / "summary" / "gpu" / "summary_gpu.py"))["main"]
    paths = ["--input", tmp_path / "gpu.json", "--output", tmp_path / "s.json", "--plot", tmp_path / "p.png"]
    assert main([str(path) for path in paths]) == 0
    assert "SYNTHETIC" in capsys.readouterr().out
    tables = json.loads((tmp_path / "s.json").read_text())["tables"]
    result = read_gpu(tmp_path / "gpu.json")
    assert tables["draft_steps"] == [list(row) for row in draft_rows(result)]
    assert len(tables["targets"]) == len(target_rows(result)) == 2
    assert len(tables["pairs"]) == len(pair_rows(result)) == 4
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    figure = plot_gpu(result)
    left, right = figure.subfigs
    assert len(left.axes) == len(right.axes) == 1
    assert left.axes[0].get_xlabel().startswith("ms per draft token")
    assert right.axes[0].get_title() == "llama-8b llama-1b"
    assert "SYNTHETIC" in figure.get_suptitle()


def test_a_failing_part_a_spent_budget_and_resuming(run, tmp_path, monkeypatch):
    fails = [True]

    def drafter(*args: Any, **options: Any) -> dict[str, Any]:
        if fails[0]:
            raise RuntimeError("out of memory\nhere")
        return {"layers": 1, "floor_ms": 1.0, "notes": [], "steps": {}}

    monkeypatch.setattr(gpu_run, "drafter_costs", drafter)
    code, out, _ = run("--parts", "bandwidth,drafter qwen-0.6b,tests")
    assert code == 1
    assert "drafter qwen-0.6b: FAILED, RuntimeError: out of memory" in out
    assert "tests: 3 skipped" in out
    fails[0] = False
    code, out, _ = run("--parts", "bandwidth,drafter", "--resume", "--budget", "0")
    assert code == 0
    assert "drafter llama-1b: left out (--budget 0:" in out
    kept = read_gpu(tmp_path / "gpu.json")["parts"]["bandwidth"]
    code, out, _ = run("--parts", "bandwidth,drafter", "--resume")
    assert code == 0
    assert "left out" not in out
    assert read_gpu(tmp_path / "gpu.json")["parts"]["bandwidth"] == kept


def test_mistakes_are_one_line(run, tmp_path):
    code, _, err = run("--parts", "nothing")
    assert code == 2
    assert "--parts: 'nothing' must be the beginning of one of bandwidth" in err
    (tmp_path / "gpu.json").write_text("{}")
    assert run("--parts", "bandwidth")[2].strip().endswith("already exists: --overwrite replaces it")
    assert "is not a run of this script on cpu" in run("--parts", "bandwidth", "--resume")[2]
    assert run("--parts", "bandwidth", "--overwrite")[0] == 0
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must be a result of evaluate_gpu\.py"):
        read_gpu(tmp_path / "other.json")


@pytest.mark.parametrize(("layers", "depth", "serial"), [(28, 1.5, 18), (28, 1.7, 16), (16, 1.5, 10), (16, 1.7, 10)])
def test_schedules_have_the_depth(layers, depth, serial):
    schedule = parse_schedule(pairs_schedule(layers, depth), layers)
    assert schedule.layers == layers
    assert not schedule.dropped
    assert schedule.depth == 2 * serial


def test_bytes_of_a_model(run):
    stack = model_costs.load_random("llama-8b", "target", CPU)
    layer = 64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 96
    assert bytes_per_token(stack.weights) == 4 * (6 * layer + 272 * 64)


def test_head_lines_show_what_is_missing():
    result = {"device": "cpu", "date": "2030", "quick": True, "versions": {"torch": "2"}, "git": None, "parts": {}}
    assert head_lines(result) == ["cpu, 2030, no commit, --quick", "torch 2"]
