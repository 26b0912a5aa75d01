"""A model sharded over two processes that torchrun starts, against the whole one.

This file is also the program of those processes: `torchrun test_tensor_parallel.py TARGET DRAFTER`, two folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import HANG_SECONDS
from helpers.decoding import GREEDY, PROMPT, plain
from helpers.processes import PYTHONPATH
from pdevis.config import DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.catalog import Source
from pdevis.loading.checkpoint import find_source, read_config, read_model
from pdevis.loading.model_builder import read_sharded_model
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.parallel.torchrun.process_group import RankChannel, start_ranks
from pdevis.parallel.torchrun.tensor_parallel import TensorParallel
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")
IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(0))

# ---- what the processes do ----


def compare(folder: str, draft_folder: str) -> None:
    """Compare a sharded target with the whole one, alone and with a drafter; rank 0 prints the results as JSON."""
    ranks = start_ranks()
    channel = RankChannel(ranks)
    source, draft_source = find_source(folder), find_source(draft_folder)
    target = TensorParallel(channel, HFCausalLM(read_sharded_model(source, dtype_of(source)), ""))
    if ranks.rank > 0:
        channel.follow()
        return
    whole, drafter = (HFCausalLM(read_model(path, dtype_of(path), CPU), "") for path in (source, draft_source))
    expected = whole.forward(IDS)
    row = {"error": error(target.forward(IDS), expected), "cache": cached_heads(target)}
    target.rewind(10)
    target.forward(IDS[20:25])
    target.rewind(12)  # in the middle of the last forward
    target.rewind(10)
    row["rewound"] = error(target.forward(IDS[10:]), expected[10:])
    target.rewind(0)
    target.prefill(IDS)
    row |= {"length": target.length, "prefilled": error(target.forward(IDS[:1]), whole.forward(IDS[:1]))}
    row["plain"] = plain(target) == plain(whole)
    long = IDS.repeat(12).tolist()
    row["long"] = plain(target, long) == plain(whole, long)
    drafting, stats = Drafter(drafter, DraftConfig(mode="exact"), whole.vocab_size), DecodeStats()
    ids = [event.id for event in speculative(Verifier(target), drafting, prompt=PROMPT, config=GREEDY, stats=stats)]
    row |= {"speculative": ids == plain(whole), "accepted": stats.accepted, "drafted": stats.drafted}
    print(json.dumps(row), flush=True)


def dtype_of(source: Source) -> torch.dtype:
    """float64, so that rounding decides no token; float32 for experts, whose kernels do not support float64."""
    return torch.float32 if hasattr(read_config(source), "num_experts") else torch.float64


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error."""
    return ((result - expected).norm() / expected.norm()).item()


def cached_heads(target: Any) -> int:
    return target.model._cache.layers[-1].keys.shape[1]


# ---- the tests ----


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("qwen3", "llama", "qwen3_moe", "qwen3_next")]


@pytest.mark.parametrize("family", SLOW)
def test_a_sharded_model_equals_the_whole_one(tiny_folder: Callable[..., Path], family: str) -> None:
    folders = [str(tiny_folder(family, seed=seed)) for seed in (0, 1)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PYTHONPATH}
    command = [*launch, __file__, *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "Error" in line)
    row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert row["cache"] == 1  # of two key heads: the cache is sharded as well
    assert row["length"] == len(IDS)
    assert max(row["error"], row["rewound"], row["prefilled"]) <= (1e-4 if family == "qwen3_next" else 1e-5)
    assert row["plain"]
    assert row["long"]
    assert row["speculative"]
    assert row["accepted"] < row["drafted"]  # so that rejected tokens were rewound


def test_heads_that_cannot_be_divided(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ModelLoadError, match="num_attention_heads = 4 cannot be divided among 3 ranks"):
        read_sharded_model(find_source(str(tiny_folder("qwen3"))), torch.float64)


if __name__ == "__main__":
    compare(*sys.argv[1:])
