"""The fused kernels against the stack, on CPU by Triton's interpreter. Bits and half precision: tests/test_cuda.py."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from helpers.decoding import GREEDY, PROMPT
from helpers.tiny_models import DENSE
from pdevis.config import DraftConfig
from pdevis.drafting.drafter import Drafter
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.layers import RMSNorm, UnitRMSNorm
from pdevis.models.linear import DenseLinear
from pdevis.models.stack import DecoderStack
from pdevis.models.static import fused_forward
from pdevis.models.static.fused_forward import product, unsupported
from pdevis.models.static.static_forward import DRAFTER_WIDTHS, StaticForward, exact_blocks

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_cuda.py tests the kernels on the GPU"),
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Let tiny models have sums of several blocks, shared by several programs, in the interpreter's best dtype."""
    monkeypatch.setattr(fused_forward, "DTYPES", (torch.float32,))
    monkeypatch.setattr(fused_forward, "BLOCK_IN", 16)
    monkeypatch.setattr(fused_forward, "FEWEST_BLOCKS", 1)


@pytest.mark.parametrize("longest_undivided", [1024, 16])
@pytest.mark.parametrize("arch", DENSE)
def test_kernels_compute_what_the_stack_computes(tiny_model, monkeypatch, arch, longest_undivided):
    monkeypatch.setattr(fused_forward, "MAX_UNDIVIDED", longest_undivided)
    weights = read_weights(tiny_model(arch, layers=1, dtype=torch.float32), "float32", CPU)
    plain, fast = DecoderStack(weights), DecoderStack(weights)
    fast.static = StaticForward(fast, DRAFTER_WIDTHS, backend="fused")
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for tokens in (20, 1, 3):
            ids = torch.randint(0, 256, (tokens,), generator=random)
            torch.testing.assert_close(fast.forward(ids), plain.forward(ids), rtol=1e-3, atol=1e-4)
    assert fast.static.backend == "fused", "no fallback"


@pytest.mark.parametrize("schedule", [pytest.param(None, marks=pytest.mark.slow), "0,1+2,3"])
def test_drafts_are_those_of_plain_kernels(tiny_model, schedule):
    weights = read_weights(tiny_model("qwen3", layers=4, dtype=torch.float32), "float32", CPU)
    rule = DraftConfig("parallel", check="static", schedule=schedule) if schedule else DraftConfig("exact")
    drafts = []
    for backend in ("eager", "fused"):
        stack = DecoderStack(weights)
        stack.static = StaticForward(stack, DRAFTER_WIDTHS, backend=backend)
        drafter = Drafter(stack, rule, 250)
        drafter.open(PROMPT, GREEDY)
        drafts.append(drafter.draft(PROMPT, 2))
        assert stack.static.backend == backend, "no fallback"
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("columns", [slice(None), slice(20, 70)])
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_products_with_all_that_surrounds_them(tokens, columns):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 100, generator=random)[:, columns]  # of a part of a wide matrix, rows are apart
    size = weight.shape[1]
    x, residual = (torch.randn(tokens, width, generator=random) for width in (size, 200))
    linear = DenseLinear(weight, torch.randn(200, generator=random))
    for norm in (None, RMSNorm(torch.randn(size, generator=random), 1e-5), UnitRMSNorm(size, 1e-5, torch.float32)):
        expected = linear(x if norm is None else norm(x))
        found = product(x, linear, norm=norm, residual=residual)
        torch.testing.assert_close(found, residual + expected, rtol=1e-4, atol=1e-4)
        gate, up = expected.view(tokens, 2, 2, 50).unbind(2)  # two lanes
        found = product(x, linear, norm=norm, lane_size=50)
        torch.testing.assert_close(found, (torch.nn.functional.silu(gate) * up).flatten(1), rtol=1e-4, atol=1e-4)


def test_what_the_kernels_do_not_support_has_a_reason(tiny_model, monkeypatch):
    model = tiny_model("qwen3", layers=1, dtype=torch.float32)
    reasons = {
        "float64": "they do not compute in float64",
        "packed": "weights are in a format of their own (PackedLinear)",
    }
    for precision, reason in reasons.items():
        stack = DecoderStack(read_weights(model, precision, CPU))
        assert unsupported(stack.weights, exact_blocks(stack)) == reason
    small = DecoderStack(read_weights(tiny_model("qwen3", layers=1, dtype=torch.float32, head_dim=8), "float32", CPU))
    reason = "head size 8 is not a power of two of at least 16"
    assert unsupported(small.weights, exact_blocks(small)) == reason
    monkeypatch.setattr(fused_forward, "find_spec", lambda name: None)
    assert unsupported(small.weights, exact_blocks(small)) == "triton is not installed"
