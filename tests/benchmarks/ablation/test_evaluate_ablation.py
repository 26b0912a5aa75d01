"""The ablation: its grid, its file, and that it can be stopped like any other run."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.evaluation import SLOW_PAIR, Scripts, script_of, timeless
from pdevis.benchmarks.ablation.ablation_run import SUMS, Cell, make_grid
from pdevis.config import DraftConfig

FLAGS = ("--k", 2, "--gen_len", 8, "--no-progress", "--code_path", SLOW_PAIR)
GRID = ("--modes", "skip,parallel", "--checks", "planned,inline", "--thresholds", "0.5", "--gammas", "3")
OUTPUT = Path("results/ablation.json")


@pytest.fixture
def scripts(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scripts:
    monkeypatch.chdir(tmp_path)
    folder = tiny_folder("llama", 0, 5)
    return Scripts(folder, folder, capsys)


def grid(*argv: str) -> list[Cell]:
    parser = runpy.run_path(str(script_of("ablation")))["build_parser"]()
    return make_grid(parser.parse_args(argv))


def test_the_grid() -> None:
    cells = grid("--modes", "exact,skip,parallel", "--thresholds", "0.8,0.9", "--windows", "2,3", "--gammas", "4")
    assert cells[0] == Cell("exact", None, None, None, 4)
    assert len(cells) == 1 + 2 + 4  # a plan of skip has no window
    assert Cell("skip", "planned", 0.8, None, 4) in cells
    assert Cell("parallel", "planned", 0.9, 3, 4) in cells
    assert len(grid("--modes", "skip", "--checks", "inline", "--windows", "2,3", "--thresholds", "0.9")) == 3
    assert [cell.mode for cell in grid("--modes", "exact", "--gammas", "1,2")] == ["exact", "exact"]
    static = grid("--modes", "skip,parallel", "--checks", "static", "--retentions", "0.9,0.8", "--windows", "2,3")
    assert len(static) == 1 + 2 + 4
    assert Cell("skip", "static", None, None, 4, 0.8) in static
    assert Cell("parallel", "static", None, 3, 4, 0.9).draft(DraftConfig()) == DraftConfig(
        "parallel", check="static", window=3, retention=0.9
    )
    files = grid("--modes", "exact", "--corrections_files", "a.safetensors,b.safetensors")
    assert files[1:] == [Cell("parallel", "static", None, None, 4, None, f"{name}.safetensors") for name in "ab"]
    base = DraftConfig(mode="exact", keep_first=3)
    assert Cell("skip", "inline", 0.7, 4, 6).draft(base) == DraftConfig("skip", 0.7, "inline", 4, keep_first=3)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--modes", "fast"], "--modes: 'fast' must be one of"),
        (["--modes", "auto"], "--modes: 'auto' cannot be part of a grid"),
        (["--thresholds", "0.8,x"], "--thresholds: 'x' must be a finite number"),
        (["--gammas", "4,0"], "--gammas: 0 must be an integer >= 1"),
        (["--windows", "2,2"], "--windows: '2,2' names 2 twice"),
        (["--gamma", "5"], "--gamma 5: the grid sets it; use --gammas"),
        (["--draft_mode", "skip"], "--draft_mode skip: the grid sets it; use --modes"),
        (["--corrections", "c.safetensors"], "--corrections: cannot be part of a grid; use --checks static"),
        (["--schedule", "0-4"], "--schedule: cannot be part of a grid"),
        (["--retentions", "2"], "--retentions: 2.0 must be a finite number >= 0 and <= 1"),
        (["--no-calibrate"], "check = 'planned' with calibrate = False"),
        (["--benchmark", "chess"], "--benchmark: 'chess' must be among wmt, mmlu"),
    ],
)
def test_mistakes_are_one_line(scripts: Scripts, argv: list[str], expected: str) -> None:
    code, err = scripts("ablation", *argv)
    assert code == 2
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


def read() -> dict[str, Any]:
    return json.loads(OUTPUT.read_text())


def test_a_grid_in_one_process(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    code, err = scripts("ablation", *FLAGS, *GRID)
    assert code == 0, err
    assert "greedy check: 10 of 10 speculative answers equal the target's" in err
    result = read()
    assert result["settings"]["cells"] == [
        {name: cell[name] for name in Cell.__annotations__} for cell in result["cells"]
    ]
    assert [cell["mode"] for cell in result["cells"]] == ["exact", "skip", "skip", "parallel", "parallel"]
    for cell in result["cells"]:
        assert cell["failed"] == 0
        assert cell["equality"] == {"equal": 2, "near_tie": 0, "different": 0}
        assert [question["question_id"] for question in cell["questions"]] == [
            question["question_id"] for question in result["target"]["questions"]
        ]
        for name in SUMS:
            assert cell[name] == pytest.approx(sum(question[name] for question in cell["questions"]))
        assert cell["tokens"] == result["target"]["tokens"]
        assert cell["draft_seconds"] > 0
        assert cell["mean_skip"] == cell["skipped"] / cell["draft_steps"]
    exact, skip = result["cells"][0], result["cells"][1]
    assert (exact["mean_skip"], exact["serial_depth"]) == (0, 10)
    assert skip["mean_skip"] > 0
    assert skip["serial_depth"] < 10

    monkeypatch.setenv("STOP_AT", "15")
    code, err = scripts("ablation", *FLAGS, *GRID, "--overwrite")
    assert code == 130
    monkeypatch.delenv("STOP_AT")
    code, err = scripts("ablation", *FLAGS, *GRID, "--resume", "--thresholds", "0.6")
    assert code == 2
    assert "cells" in err
    assert scripts("ablation", *FLAGS, *GRID, "--resume")[0] == 0
    again = read()
    for key in ("target", "cells", "equality"):
        assert timeless(again[key]) == timeless(result[key])


def test_a_cell_that_fails_is_recorded(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL_AT", "4")  # warm-up and answer of the target, warm-up of exact, its answer
    code, err = scripts("ablation", *FLAGS, "--modes", "exact", "--gammas", "2")
    assert code == 1
    assert "1 of 4 failed, first: RuntimeError: no memory left" in err
    cell = read()["cells"][0]
    assert cell["failed"] == 1
    assert cell["questions"][0]["error"] == "RuntimeError: no memory left"
    assert cell["tokens"] == cell["questions"][1]["tokens"] > 0
