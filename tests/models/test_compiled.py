"""Compiled forwards against those of the stack, in every width, and decoding with them."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from helpers.decoding import GREEDY, PROMPT, plain
from helpers.tiny_models import DENSE
from pdevis import DecodeConfig, load_pair
from pdevis.config import DraftConfig
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.drafting.drafter import Drafter
from pdevis.generation import DecodeStats
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models import compiled
from pdevis.models.compiled import WIDTHS, compile_stack
from pdevis.models.kv_cache import INITIAL_CAPACITY
from pdevis.models.linear import has_int8
from pdevis.models.stack import DecoderStack

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")),
    reason="torch.compile needs a C++ compiler",
)
FORMATS = ["float32", pytest.param("int8", marks=pytest.mark.skipif(not has_int8(), reason="torch without fbgemm"))]


@pytest.fixture(autouse=True)
def _reset_compiler(monkeypatch):
    monkeypatch.setattr(compiled, "WIDTHS", (2, 6))
    monkeypatch.setattr(compiled.StaticShapeForward, "max_tokens", 6)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("arch", DENSE)
def test_every_width_computes_what_the_stack_computes(tiny_model, arch, precision):
    weights = read_weights(tiny_model(arch, layers=2, dtype=torch.float32), precision, CPU)
    plain_stack, fast = DecoderStack(weights), DecoderStack(weights)
    compile_stack(fast)
    g = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for tokens in (20, 1, 2, 5, 6, 7, 1):  # a prompt, both widths, one between, one beyond
            ids = torch.randint(0, 256, (tokens,), generator=g)
            torch.testing.assert_close(fast.forward(ids), plain_stack.forward(ids), rtol=2e-4, atol=2e-4)
            assert fast.length == plain_stack.length
        for stack in (fast, plain_stack):
            stack.rewind(9)
        ids = torch.tensor([7, 8, 9])
        torch.testing.assert_close(fast.forward(ids), plain_stack.forward(ids), rtol=2e-4, atol=2e-4)


def test_a_growing_cache(tiny_model):
    weights = read_weights(
        tiny_model("llama", layers=1, dtype=torch.float32, max_position_embeddings=2048), "float32", CPU
    )
    plain_stack, fast = DecoderStack(weights), DecoderStack(weights)
    compile_stack(fast)
    with torch.inference_mode():
        for stack in (plain_stack, fast):
            stack.prefill(torch.arange(INITIAL_CAPACITY - 1) % 256)
        for token in (1, 2, 3):
            ids = torch.tensor([token])
            torch.testing.assert_close(fast.forward(ids), plain_stack.forward(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["exact", "skip"])
def test_greedy_ids_equal_the_targets(tiny_model, mode):
    weights = [read_weights(tiny_model("qwen3", seed=seed, layers=2), "float64", CPU) for seed in (0, 1)]
    expected = plain(DecoderStack(weights[0]))
    target, drafter = (DecoderStack(part) for part in weights)
    for stack in (target, drafter):
        compile_stack(stack)
    drafting = Drafter(drafter, DraftConfig(mode=mode, threshold=0.5), 264)
    events = speculative(Verifier(target), drafting, prompt=PROMPT, config=GREEDY, stats=DecodeStats())
    assert [event.id for event in events] == expected


def test_compile_applies_to_both_models_and_needs_a_supported_family(tiny_folder):
    pair = load_pair(str(tiny_folder("llama")), device="cpu", compile=True)
    assert pair.target.compiled_forward
    assert pair.drafter.compiled_forward
    assert pair.describe()["compile"]
    config = DecodeConfig(max_new_tokens=8, eos_ids=())
    assert pair.generate("hello", config).ids == pair.generate("hello", config, "target").ids
    with pytest.raises(ValueError, match="compile"):
        load_pair(str(tiny_folder("qwen3_moe")), device="cpu", compile=True)


def test_widths_are_increasing_from_one():
    assert WIDTHS[0] == 1
    assert list(WIDTHS) == sorted(set(WIDTHS))
