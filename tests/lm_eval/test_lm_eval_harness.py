"""Whole tasks through the lm-evaluation-harness, local data, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import HANG_SECONDS, ROOT
from helpers.lm_eval_reference import TOLERANCE, log_likelihood, make_adapter, make_reference
from helpers.tiny_models import make_tokenizer
from pdevis import DecodeConfig

TINY = make_tokenizer()
CHOICES = [
    {"question": "The sky is", "choices": ["blue", "green as grass", "a"], "label": 0},
    {"question": "The sky at night is", "choices": ["black", "bright"], "label": 0},
    {"question": "Two and two are", "choices": ["four", "five", "six"], "label": 0},
]
MULTIPLE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: [{stop}], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Any:
    return make_adapter(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return make_reference(folder)


def check_samples(samples: dict[str, list[dict[str, Any]]], texts: list[str], stop: str, reference: Any) -> None:
    """Compare the answers and likelihoods that lm_eval logged with those of the decoder and of transformers."""
    for sample, text in zip(samples["tiny_generate"], texts, strict=True):
        assert sample["resps"] == [[text.split(stop)[0]]]
    assert any(stop in text for text in texts)
    for sample, row in zip(samples["tiny_choice"], CHOICES, strict=True):
        for [[total, greedy]], choice in zip(sample["resps"], row["choices"], strict=True):
            expected = log_likelihood(reference, *map(TINY.encode, (row["question"], " " + choice)))
            assert float(total) == pytest.approx(expected[0], rel=TOLERANCE)
            assert str(greedy) == str(expected[1])


@pytest.fixture
def tasks(tmp_path: Path, adapter: Any) -> SimpleNamespace:
    """Two local tasks: their folder, the decoder's answers, and a stop string that occurs in them."""
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "data.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    config = DecodeConfig(max_new_tokens=24)
    texts = [adapter.pair.generate(TINY.encode(row["question"]), config, "target").text for row in CHOICES]
    stop = texts[0][4:6]
    (tmp_path / "tasks" / "choice.yaml").write_text(MULTIPLE.format(data=data))
    (tmp_path / "tasks" / "generate.yaml").write_text(GENERATE.format(data=data, stop=json.dumps(stop)))
    return SimpleNamespace(folder=tmp_path / "tasks", texts=texts, stop=stop)


def test_harness_runs_tasks(
    adapter: Any, reference: Any, tasks: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation and multiple choice through lm_eval's evaluator."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    manager = TaskManager(include_path=str(tasks.folder), include_defaults=False)
    names = ["tiny_choice", "tiny_generate"]
    evaluated = simple_evaluate(model=adapter, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
    check_samples(evaluated["samples"], tasks.texts, tasks.stop, reference)
    assert 0 <= evaluated["results"]["tiny_choice"]["acc,none"] <= 1
    answers = evaluated["config"]["pdevis"]["answers"]
    assert answers["tokens_per_second"] == pytest.approx(answers["new_tokens"] / answers["decode_seconds"])
    assert answers["acceptance_rate"] == answers["accepted"] / answers["drafted"]
    assert answers["new_tokens"] == adapter.total.new_tokens > 0


@pytest.mark.slow
def test_command_line_runs_tasks(folder: Path, reference: Any, tasks: SimpleNamespace, tmp_path: Path) -> None:
    """The same through `python -m pdevis.lm_eval`: lm_eval alone takes twenty seconds to list its tasks."""
    model = (
        f"target={folder},target_precision=float64,draft_precision=float64,gamma=3,draft_mode=parallel,threshold=0.5,"
        "device=cpu"
    )
    words = ["--model", "pdevis", "--model_args", model, "--tasks", "tiny_choice,tiny_generate", "--log_samples"]
    words += ["--include_path", str(tasks.folder), "--output_path", str(tmp_path / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [sys.executable, "-m", "pdevis.lm_eval", *words],
        env=os.environ | offline | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=HANG_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert "tiny_generate" in run.stdout
    samples: dict[str, list[dict[str, Any]]] = {}
    for name in ("tiny_choice", "tiny_generate"):
        [path] = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        samples[name] = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    check_samples(samples, tasks.texts, tasks.stop, reference)
    [results] = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["pdevis"]["mode"] == "parallel"
    assert config["device"] == config["pdevis"]["target_device"] == "cpu"
    assert config["pdevis"]["answers"]["new_tokens"] > 0
