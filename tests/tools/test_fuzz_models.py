"""Random tiny models against `generate`: a few cases always, two thousand in the slow run."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from helpers import ROOT

CASES, PARTS = 2000, 20
FEW = "llama,qwen3,gpt2,mamba,phi3,qwen3_next,openai-gpt,gemma2"  # one for each way in which models are run


@pytest.fixture(scope="module")
def fuzz() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "fuzz_models.py"))


def test_a_few_cases(fuzz: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz["main"](["--cases", "16", "--architectures", FEW]) == 0
    outcomes = capsys.readouterr().out
    for way in ("own stack", "through transformers", "one token per forward", "without a cache"):
        assert f"equal, {way}" in outcomes


def test_a_difference_is_a_finding(
    fuzz: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fuzz["run_case"].__globals__, "generate", lambda model, ids, count: [3] * count)
    assert fuzz["main"](["--cases", "1", "--architectures", "gpt2"]) == 1
    assert "case 0: Case(architecture='gpt2'" in capsys.readouterr().out


def test_a_model_that_is_too_big_is_not_built(fuzz: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="parameters"):
        fuzz["tiny_model"](fuzz["tiny_config"]("gpt2", hidden_size=4096), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_two_thousand_cases(fuzz: dict[str, Any], capsys: pytest.CaptureFixture[str], part: int) -> None:
    size = CASES // PARTS
    code = fuzz["main"](["--cases", str(size), "--first", str(part * size)])
    assert code == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_the_documentation(fuzz: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz["main"](["--table"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
