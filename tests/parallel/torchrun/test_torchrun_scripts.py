"""The scripts under torchrun: only rank 0 reads, writes and prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import HANG_SECONDS
from helpers.evaluation import timeless
from helpers.processes import APP, one_object, torchrun
from pdevis.config import DecodeConfig
from pdevis.pair import load_pair


@pytest.mark.slow
def test_only_rank_0_prints_a_json_object(folders: Callable[..., Any]) -> None:
    target, other = folders("llama")
    words = ["--target_model", target, "--drafter_model", other, "--prompt", "-", "--no-chat", "--json"]
    words += ["--device_target", "ranks", "--device_drafter", "ranks", "--length", "12"]
    done = torchrun(APP, *words, stdin="hi\n")
    answer = one_object(done)
    assert done.stderr.count("loading the target") == 1  # the other ranks report no progress either
    assert answer["stats"]["mode"] == "parallel"
    pair = load_pair(target, device="cpu", target_precision="float32")
    expected = pair.generate(pair.encode("hi", chat=False), DecodeConfig(max_new_tokens=12), "target")
    assert (answer["ids"], answer["text"]) == (expected.ids, expected.text)


@pytest.mark.slow
def test_an_evaluation_under_torchrun(folders: Callable[..., Any], tmp_path: Path) -> None:
    """One process writes the results, and they equal those of a run without torchrun."""
    target, other = folders("llama")
    script = str(Path(APP).parent / "evaluation" / "mmlu" / "evaluate_mmlu.py")
    results = []
    for device in ("ranks", "cpu"):
        output = tmp_path / f"{device}.json"
        words = ["--target_model", target, "--drafter_model", other, "--device", device, "--k", "2", "--gen_len", "8"]
        words += ["--output", str(output), "--methods", "speculative", "--no-chat", "--draft_mode", "exact"]
        words += ["--target_precision", "float32", "--draft_precision", "float32"]
        if device == "ranks":
            done = torchrun(script, *words)
            assert done.returncode == 0, done.stderr
        else:
            subprocess.run([sys.executable, script, *words], check=True, capture_output=True, timeout=HANG_SECONDS)
        results.append(json.loads(output.read_text()))
    assert timeless(results[0]) == timeless(results[1])


def test_heads_that_cannot_be_divided(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder("qwen3", num_attention_heads=3, num_key_value_heads=1))
    words = ["--target_model", folder, "--prompt", "hi", "--no-chat", "--device", "ranks"]
    done = torchrun(APP, *words)
    message = f"error: model = {folder!r}: its num_attention_heads = 3 cannot be divided among 2 ranks"
    assert message in done.stderr
    assert done.stdout == ""
    assert "exitcode  : 2 " in done.stderr
