"""The summary of an ablation: ratios to `exact` by hand, the frontier, the journal, and mistakes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from pdevis.benchmarks.ablation.ablation_plot import kind_of, labels_of, plot_grid
from pdevis.benchmarks.ablation.ablation_summary import load_grid, summarize_grid

SETTINGS = [
    {"mode": "exact", "check": None, "threshold": None, "window": None, "gamma": 4},
    {"mode": "skip", "check": "planned", "threshold": 0.9, "window": None, "gamma": 4},
    {"mode": "parallel", "check": "planned", "threshold": 0.9, "window": 2, "gamma": 4},
    {"mode": "exact", "check": None, "threshold": None, "window": None, "gamma": 6},
]
# per setting and question: drafted, accepted, draft seconds, all seconds
NUMBERS = [
    [(8, 6, 1.0, 2.0), (8, 4, 1.0, 2.0)],
    [(12, 4, 1.0, 2.0), (8, 3, 0.5, 2.0)],
    [(8, 6, 0.5, 1.0), (8, 3, 0.5, 1.5)],
    [(12, 6, 1.0, 2.0), (12, 6, 1.0, 2.0)],
]


def answer(question: int, position: int, numbers: tuple[int, int, float, float] | None) -> dict[str, Any]:
    """An entry as evaluate_ablation.py writes it; no numbers: the target's."""
    drafted, accepted, draft_seconds, seconds = numbers or (0, 0, 0.0, 4.0)
    entry = {
        "question_id": question,
        "cell": position,
        "drafted": drafted,
        "accepted": accepted,
        "draft_steps": drafted,
    }
    entry |= {"tokens": 10, "rounds": 4, "skipped": 2.0 * drafted, "depth": 8 * drafted}
    entry |= {"draft_seconds": draft_seconds, "seconds": seconds}
    return entry | ({"same_as_target": True} if numbers else {})


def grid() -> dict[str, Any]:
    cells = [
        setting | {"questions": [answer(i, position + 1, numbers) for i, numbers in enumerate(NUMBERS[position])]}
        for position, setting in enumerate(SETTINGS)
    ]
    return {"benchmark": "mmlu", "target": {"questions": [answer(i, 0, None) for i in range(2)]}, "cells": cells}


def summary_of(tmp_path: Path, result: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(result, indent=1))
    return summarize_grid(load_grid(path))


def test_ratios_to_exact_of_the_same_gamma(tmp_path: Path) -> None:
    result = summary_of(tmp_path, grid())
    exact, skip, parallel, exact6 = result["cells"]
    for cell in (exact, exact6):
        assert (cell["draft_speedup"]["value"], cell["retention"]["value"]) == (1, 1)
    assert skip["draft_speedup"]["value"] == pytest.approx((20 / 1.5) / (16 / 2))
    assert skip["acceptance_rate"]["value"] == pytest.approx(7 / 20)
    assert skip["retention"]["value"] == pytest.approx((7 / 20) / (10 / 16))
    assert parallel["draft_speedup"]["value"] == pytest.approx(2)
    assert parallel["retention"]["value"] == pytest.approx(0.9)
    assert parallel["speed_over_target"]["value"] == pytest.approx((20 / 2.5) / (20 / 8))
    assert parallel["mean_skip"]["value"] == 2
    assert parallel["serial_depth"]["value"] == 8
    assert parallel["same_as_target"] == {"items": 2, "same": 2, "near_ties": 0}
    assert result["target"]["tokens_per_second"]["value"] == pytest.approx(20 / 8)


def test_frontier(tmp_path: Path) -> None:
    result = summary_of(tmp_path, grid())
    assert [cell["frontier"] for cell in result["cells"]] == [True, False, True, True]


def test_static_cells_are_summarised_and_drawn(tmp_path: Path) -> None:
    changed = grid()
    changed["cells"][1] |= {"check": "static", "threshold": None, "target_retention": 0.9}
    changed["cells"][2] |= {"check": "static", "threshold": None, "window": None, "corrections": "made/c.safetensors"}
    result = summary_of(tmp_path, changed)
    assert [cell.get("target_retention") for cell in result["cells"]] == [None, 0.9, None, None]
    assert labels_of(result["cells"])[1:3] == ["skip static γ4", "parallel static γ4 c.safetensors"]
    assert [kind_of(cell) for cell in result["cells"]] == ["exact", "skip static", "parallel static", "exact"]
    left, right = plot_grid(result).axes
    numbers = [text.get_text() for text in left.texts]
    assert numbers == ["1", "2", "3", "4"]
    assert right.texts[0].get_text().splitlines()[1] == "2  skip static γ4"
    assert [text.get_text() for text in right.texts[1:]] == numbers


def test_failed_questions_are_counted_and_left_out_of_the_pairs(tmp_path: Path) -> None:
    changed = grid()
    changed["cells"][2]["questions"][1] = {"question_id": 1, "cell": 3, "error": "RuntimeError: no"}
    result = summary_of(tmp_path, changed)
    parallel = result["cells"][2]
    assert (result["errors"], parallel["errors"], parallel["items"]) == (1, 1, 1)
    assert parallel["draft_speedup"] == {"value": pytest.approx(2), "low": None, "high": None}
    assert parallel["retention"]["value"] == pytest.approx(1)


def test_cell_without_exact_has_no_ratios(tmp_path: Path) -> None:
    changed = grid()
    changed["cells"] = changed["cells"][1:2]
    [skip] = summary_of(tmp_path, changed)["cells"]
    assert "draft_speedup" not in skip
    assert "retention" not in skip
    assert not skip["frontier"]


def test_journal(tmp_path: Path) -> None:
    lines = [{"header": {"benchmark": "mmlu", "kind": "ablation", "settings": {"cells": SETTINGS}}}]
    units = [
        answer(i, position, NUMBERS[position - 1][i] if position else None) for i in range(2) for position in range(5)
    ]
    lines += [{"index": unit, "entry": entry} for unit, entry in enumerate(units[:8])]
    path = tmp_path / "grid.json.partial.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"ind')
    result = summarize_grid(load_grid(path))
    assert result["partial"]
    assert [cell["items"] for cell in result["cells"]] == [2, 2, 1, 1]
    assert result["cells"][1]["draft_speedup"]["value"] == pytest.approx((20 / 1.5) / (16 / 2))
    assert result["cells"][2]["draft_speedup"]["value"] == pytest.approx(2)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = runpy.run_path(str(ROOT / "summary" / "ablation" / "summary_ablation.py"))["main"]([*map(str, words)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output, plot = tmp_path / "grid.json", tmp_path / "s.json", tmp_path / "p.png"
    path.write_text(json.dumps(grid()))
    code, out, err = run(capsys, "--input", path, "--output", output, "--plot", plot)
    assert (code, err) == (0, "")
    assert "parallel *" in out
    assert "skip *" not in out
    assert json.loads(output.read_text())["items"] == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    incomplete = grid()
    del incomplete["cells"][1]["questions"][0]["draft_seconds"]
    for name, text, expected in (
        ("missing", None, "cannot be read"),
        ("broken", "{\n!", "line 2"),
        ("array", "[]", "not the result of evaluate_ablation.py"),
        ("no cells", '{"target": {}}', "not the result of evaluate_ablation.py"),
        ("bad cell", '{"target": {"questions": []}, "cells": [{"mode": "skip"}]}', "incomplete"),
        ("no number", json.dumps(incomplete), "question 0 of skip lacks draft_seconds"),
        ("no journal", None, "cannot be read"),
    ):
        path = tmp_path / (f"{name}.partial.jsonl" if name == "no journal" else name)
        if text is not None:
            path.write_text(text)
        code, out, err = run(capsys, "--input", path, "--output", tmp_path / "s.json")
        assert (code, out) == (2, ""), name
        assert len(err.splitlines()) == 1
        assert expected in err, err
    assert not (tmp_path / "s.json").exists()
