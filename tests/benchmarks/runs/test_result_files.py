"""Result files: written, read back, and files that are not results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import ROOT
from pdevis.benchmarks.runs.result_files import encode_results, meta_path, method_keys, read_meta, read_results
from pdevis.benchmarks.tasks import BENCHMARKS, get_task
from pdevis.util.files import write_atomic

BLOCK = {"output_text": "x"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


def test_a_link_stays_a_link(output: Path) -> None:
    real = output.with_name("real.json")
    real.touch()
    output.symlink_to(real)
    write_atomic(output, b"new")
    assert output.is_symlink()
    assert real.read_text() == "new"


def test_results_are_read_back_in_both_forms(output: Path) -> None:
    array = [{"question_id": 1, "target_only": BLOCK}, {"question_id": 2, "error": "ValueError: x\u2028y"}]
    output.write_bytes(encode_results("mmlu", array))
    assert json.loads(output.read_text()) == array
    assert read_results(output) == array
    lines = [{"question_id": 1, "prompt_text": "a", "target": BLOCK, "draft": BLOCK}]
    output.write_bytes(encode_results("specbench", lines))
    assert output.read_bytes().count(b"\n") == 1
    assert read_results(output, "specbench") == lines
    assert read_meta(output) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no results"),
        ("[]", "holds no results"),
        ("[1]", "item 1: must be an object with question_id"),
        ('[\n{"question_id": 1, "speculative": {"output_text": ""}},\n{]', "line 3: must be JSON"),
        ('{"question_id": 1, "error": "x"}\n{"question', "line 2: must be JSON"),
        ('{"question_id": 1, "error": "x"}\n{"question_id": 2}\n', "line 2: must have 'error' or a block"),
        ('{"question_id": 1, "target": 3}', "line 1: every method's block"),
        ('{"header": {}}\n', "the journal of an unfinished run"),
        ('{\n"cells": []}\n', "as an ablation writes it"),
        ('{"prompt": "a dataset"}\n', "must be an object with question_id"),
    ],
)
def test_files_that_are_not_results_are_refused(output: Path, text: str, expected: str) -> None:
    output.write_text(text)
    with pytest.raises(ValueError, match=r"out\.json") as caught:
        read_results(output)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="must be UTF-8 text"):
        read_results(tmp_path / "x")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_results_without_a_meta_file_are_known_by_their_keys(benchmark: str, output: Path) -> None:
    task = get_task(benchmark)
    sample = next((ROOT / "Data" / "samples").glob(f"{benchmark}.*"))
    entry = task.entry(task.load(sample, k=1)[0]) | {method_keys(benchmark)["target"]: BLOCK}
    output.write_bytes(encode_results(benchmark, [entry]))
    assert read_results(output, benchmark) == [entry]
    for other in BENCHMARKS:
        if task.own_keys and other != benchmark:
            with pytest.raises(ValueError, match=f"these are results of {benchmark}, not of {other}"):
                read_results(output, other)


def test_results_of_another_benchmark_are_refused_by_name(output: Path) -> None:
    output.write_bytes(encode_results("mmlu", [{"question_id": 1, "subject": "law", "target_only": BLOCK}]))
    assert read_results(output, "mmlu")
    with pytest.raises(ValueError, match="these are results of mmlu, not of specbench"):
        read_results(output, "specbench")
    output.write_bytes(encode_results("math", [{"question_id": 1, "target_only": BLOCK}]))
    meta_path(output).write_text('{"benchmark": "math"}')
    assert read_results(output, "math")
    with pytest.raises(ValueError, match="these are results of math, not of wmt"):
        read_results(output, "wmt")
    meta_path(output).write_text("{")
    with pytest.raises(ValueError, match=r"out.json.meta.json: must be JSON"):
        read_results(output, "math")
