"""tools/gpu/bench_fused.py: its flags; what it times needs a GPU."""

from __future__ import annotations

import runpy

import pytest
import torch

from helpers import ROOT

tool = runpy.run_path(str(ROOT / "tools" / "gpu" / "bench_fused.py"))


def test_flags():
    args = tool["build_parser"]().parse_args([])
    assert args.blocks[:2] == ((16, 256, 5), (32, 256, 5))
    assert args.splits == (1, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "bench_fused.py needs a CUDA device; torch sees none"),
        (["--shapes", "7b"], "--shapes: '7b' must be one of qwen-0.6b qkv, "),
    ],
)
def test_mistakes_are_one_line(capsys, argv, message):
    assert tool["main"](argv) == 2
    assert message in capsys.readouterr().err
