"""python -m pdevis.verify: equal texts, near-ties and real differences, from flags to exit code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdevis import load_pair
from pdevis.verify import verify_run
from pdevis.verify.__main__ import main
from pdevis.verify.verify_run import EQUAL, NEAR_TIES, REAL_DIFFERENCE, compare, conclude


@pytest.fixture
def run(folders, capsys) -> Any:
    target, drafter = folders("qwen3")

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        models = [] if "--target_model" in argv else ["--target_model", target, "--drafter_model", drafter]
        try:
            code = main([*models, "--device", "cpu", "--prompts", "2", "--length", "12", *argv])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_equal_texts(run):
    code, out, _ = run("--draft_mode", "skip")
    assert code == EQUAL
    assert out.splitlines()[-1] == "equal: 2 prompts × 12 tokens, speculative decoding wrote what plain decoding wrote"


def test_with_transformers(run):
    code, out, _ = run("--transformers", "--target_precision", "float32")
    assert code == EQUAL, out
    assert "speculative decoding and transformers' generate wrote what plain decoding wrote" in out


def test_a_model_without_a_chat_template_and_weights(run):
    code, out, _ = run("--target_model", "random:smollm2-135m", "--length", "4", "--prompts", "1")
    assert code == EQUAL, out
    assert "random:smollm2-135m" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompts", "99"], "--prompts: 99 must be at most 12"),
        (["--prompts", "0"], "--prompts"),
        (
            ["--transformers", "--target_precision", "int8"],
            "--transformers: needs --target_precision float32 or packed",
        ),
        (["--target_model", "random:llama-9b"], "must be random:KEY with a key of llama-1b"),
        (["--graphs", "maybe"], "must be among auto, on, off"),
    ],
)
def test_mistakes_are_one_line(run, argv, message):
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert message in err.splitlines()[-1]


def test_differences_are_found_and_told_apart(folders):
    pair = load_pair(*folders("llama"), device="cpu")

    def plain(ids: list[int]) -> list[int]:
        return pair.generate(ids, verify_run.DecodeConfig(max_new_tokens=6, eos_ids=()), "target").ids

    decoders = {"good": plain, "other": lambda ids: [*plain(ids)[:3], 7, 7, 7], "short": lambda ids: plain(ids)[:4]}
    partings = compare(pair, decoders, prompts=2, length=6)
    assert [(parting.prompt, parting.decoder) for parting in partings] == [
        (1, "other"),
        (1, "short"),
        (2, "other"),
        (2, "short"),
    ]
    lines = [parting.describe(pair.tokenizer) for parting in partings]
    assert lines[0].startswith("prompt 1, token 4: plain decoding ")
    assert lines[0].endswith(" apart, a real difference")
    assert "short no token: logits cannot be compared" in lines[1]
    assert conclude(partings, [*decoders], prompts=2, length=6)[1] == REAL_DIFFERENCE


def test_a_near_tie_is_told_apart(folders):
    pair = load_pair(*folders("llama"), device="cpu")
    target = pair.target
    logits = target.logits

    def with_a_tie(h: torch.Tensor) -> torch.Tensor:
        found = logits(h)
        best = found.amax(-1, keepdim=True)
        found[:, 3:5] = best + 1
        found[:, 4] -= 1e-5
        return found

    target.logits = with_a_tie
    partings = compare(pair, {"rounded": lambda ids: [4, 3, 3]}, prompts=1, length=3)
    assert partings[0].describe(pair.tokenizer).endswith("apart, a near-tie")
    line, code = conclude(partings, ["rounded"], prompts=1, length=3)
    assert code == NEAR_TIES
    assert line.startswith("near-ties only: 1 of 1 texts part")
