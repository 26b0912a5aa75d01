"""Forwards in static shapes against those of the stack: eager and compiled, in every width, and decoding with them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import Any

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
from pdevis.models.kv_cache import INITIAL_CAPACITY
from pdevis.models.linear import has_int8
from pdevis.models.stack import DecoderStack
from pdevis.models.static import start, static_forward
from pdevis.models.static.static_forward import CPU_WIDTHS, DRAFTER_WIDTHS, TARGET_WIDTHS, StaticForward, block_length

CPU = torch.device("cpu")
HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
compiler = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler")
FORMATS = ["float32", pytest.param("int8", marks=pytest.mark.skipif(not has_int8(), reason="torch without fbgemm"))]


@pytest.fixture
def _reset_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def two_stacks(model: Any, precision: str = "float32", **options: Any) -> tuple[DecoderStack, DecoderStack]:
    """Return a plain stack and one with static shapes."""
    weights = read_weights(model, precision, CPU)
    fast = DecoderStack(weights)
    fast.static = StaticForward(fast, options.pop("widths", (2, 6)), backend=options.pop("backend", "eager"))
    return DecoderStack(weights), fast


def check_forwards(plain_stack: DecoderStack, fast: DecoderStack) -> None:
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


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("arch", DENSE)
def test_every_width_computes_what_the_stack_computes(tiny_model, arch, precision):
    check_forwards(*two_stacks(tiny_model(arch, layers=2, dtype=torch.float32), precision))


@compiler
@pytest.mark.usefixtures("_reset_compiler")
@pytest.mark.parametrize(
    ("arch", "precision"), [("llama", "float32"), ("qwen2", FORMATS[1].values[0]), ("qwen3", "float32")]
)
def test_compiled_widths_compute_what_the_stack_computes(tiny_model, arch, precision):
    if precision == "int8" and not has_int8():
        pytest.skip("torch without fbgemm")
    check_forwards(*two_stacks(tiny_model(arch, layers=2, dtype=torch.float32), precision, backend="compiled"))


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=compiler)])
@pytest.mark.usefixtures("_reset_compiler")
def test_a_growing_cache(tiny_model, backend):
    model = tiny_model("llama", layers=1, dtype=torch.float32, max_position_embeddings=2048)
    plain_stack, fast = two_stacks(model, backend=backend)
    with torch.inference_mode():
        for stack in (plain_stack, fast):
            stack.prefill(torch.arange(INITIAL_CAPACITY - 2) % 256)
        for token in (1, 2, 3, 4):
            ids = torch.tensor([token])
            torch.testing.assert_close(fast.forward(ids), plain_stack.forward(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float64", *FORMATS])
def test_one_width_gives_tokens_the_same_bits_at_once_and_one_by_one(tiny_model, precision):
    model = tiny_model("qwen3", layers=3, dtype=torch.float32)
    _, fast = two_stacks(model, precision, widths=TARGET_WIDTHS)
    assert start.count_differing_rows(fast) == 0
    assert "same bits" in start.describe_differing_rows(0)


def test_rows_that_depend_on_other_rows_are_found(tiny_model, monkeypatch):
    _, fast = two_stacks(tiny_model("llama", layers=2, dtype=torch.float32), widths=TARGET_WIDTHS)
    forward = fast.forward
    monkeypatch.setattr(fast, "forward", lambda ids: forward(ids) + len(ids))
    assert start.count_differing_rows(fast) == 16
    assert "16 of 16 tokens other bits" in start.describe_differing_rows(16)


def test_a_token_attends_to_a_block_that_depends_on_its_position_alone(tiny_model):
    model = tiny_model("llama", layers=1, dtype=torch.float32, max_position_embeddings=2048)
    _, fast = two_stacks(model, widths=TARGET_WIDTHS)
    assert [fast.static.room(position) for position in (0, 500, 511, 512)] == [16, 12, 1, 16]
    assert fast.static.room(2047) == 1, "the context ends"
    assert [block_length(tokens, 5000) for tokens in (1, 512, 513, 1024, 4097)] == [512, 512, 1024, 1024, 5000]
    assert Verifier(fast).draft_room(501) == 11
    assert Verifier(DecoderStack(fast.weights)).draft_room(501) == 2048


@pytest.mark.parametrize(
    "rule", [DraftConfig("exact"), DraftConfig("skip", 0.5), DraftConfig("skip", check="static", schedule="0,2")]
)
def test_greedy_ids_equal_the_targets(tiny_model, rule, monkeypatch):
    """The text crosses the ends of several blocks of the cache."""
    monkeypatch.setattr(static_forward, "INITIAL_CAPACITY", 8)
    made = {"layers": 3, "dtype": torch.float32}
    weights = [read_weights(tiny_model("qwen3", seed=seed, **made), "float64", CPU) for seed in (0, 1)]
    config = replace(GREEDY, max_new_tokens=70)
    expected = plain(DecoderStack(weights[0]), config=config)
    target, drafter = (DecoderStack(part) for part in weights)
    target.static = StaticForward(target, TARGET_WIDTHS, backend="eager")
    drafter.static = StaticForward(drafter, DRAFTER_WIDTHS, backend="eager")
    drafting = Drafter(drafter, rule, 264)
    events = speculative(Verifier(target), drafting, prompt=PROMPT, config=config, stats=DecodeStats())
    assert [event.id for event in events] == expected
    assert plain(target, config=config) == expected


@compiler
@pytest.mark.usefixtures("_reset_compiler")
def test_graphs_apply_to_both_models_and_need_a_supported_family(tiny_folder, monkeypatch):
    monkeypatch.setattr(start, "CPU_WIDTHS", (1, 6))
    folder = str(tiny_folder("llama"))
    pair = load_pair(folder, device="cpu", compile=True)
    assert pair.target.static
    assert pair.drafter.static
    assert pair.describe()["graphs"] == "on"
    config = DecodeConfig(max_new_tokens=8, eos_ids=())
    assert pair.generate("hello", config).ids == pair.generate("hello", config, "target").ids
    assert load_pair(folder, device="cpu").target.static is None
    with pytest.raises(ValueError, match="graphs = 'on'"):
        load_pair(str(tiny_folder("qwen3_moe")), device="cpu", graphs="on")
    with pytest.raises(ValueError, match="graphs = 'maybe': must be one of auto, on, off"):
        load_pair(folder, device="cpu", graphs="maybe")


@pytest.mark.parametrize(("failures", "ends"), [(0, "on"), (1, "on"), (2, None)])
def test_graphs_that_fail_are_reported(tiny_model, monkeypatch, failures, ends):
    stack, _ = two_stacks(tiny_model("llama", layers=1, dtype=torch.float32))
    run, left = start._run_all_widths, [failures]

    def fail(stack: DecoderStack) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("no compiler\nat all")
        run(stack)

    monkeypatch.setattr(start, "_run_all_widths", fail)
    monkeypatch.setattr(static_forward.torch, "compile", lambda function, **options: function)
    lines: list[str] = []
    start.start_graphs(stack, "target", lines.append)
    assert (stack.static is not None) == (ends == "on")
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == failures + (ends == "on")
    if failures:
        assert "no graphs of the target with torch.compile (RuntimeError: no compiler): plain kernels" in notes[0]
    if ends == "on":
        assert notes[-1].startswith("note: the target's graphs (")
        assert stack.length == 0
    else:
        assert notes[-1].endswith("its forwards run without graphs")


def test_widths_are_increasing():
    for widths in (TARGET_WIDTHS, DRAFTER_WIDTHS, CPU_WIDTHS):
        assert list(widths) == sorted(set(widths))
        assert widths[-1] == 16
