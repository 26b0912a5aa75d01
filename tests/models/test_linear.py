"""Weight formats against F.linear; a row's bits must not depend on other rows, as verification requires."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pdevis.models.linear import (
    DRAFTER_FORMATS,
    FORMATS,
    Int8Linear,
    has_int8,
    has_packed,
    quantized_from_integers,
    resolve_precision,
    storage_dtype,
)

CPU = torch.device("cpu")
SHAPES = [(64, 48), (576, 960), (1536, 576)]
needs = {
    "packed": pytest.mark.skipif(not has_packed(), reason="torch without oneDNN"),
    "int8": pytest.mark.skipif(not has_int8(), reason="torch without fbgemm"),
}


def make(inside: int, outside: int, rows: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(inside + outside)
    weight = torch.randn(outside, inside, generator=g) / inside**0.5
    return weight, torch.randn(outside, generator=g), torch.randn(rows, inside, generator=g)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("formats", [FORMATS, DRAFTER_FORMATS], ids=["target", "drafter"])
@pytest.mark.parametrize("rows", [1, 9, 20])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("float32", 1e-7),
        pytest.param("packed", 1e-6, marks=needs["packed"]),
        pytest.param("int8", 0.02, marks=needs["int8"]),
    ],
)
def test_format_computes_the_product(name, error, rows, formats, shape, biased):
    weight, bias, x = make(*shape, rows)
    expected = F.linear(x, weight, bias if biased else None)
    assert relative_error(formats[name](weight, bias if biased else None)(x), expected) <= error


@needs["int8"]
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_rows_have_the_same_bits_at_once_and_one_by_one(shape):
    weight, bias, x = make(*shape)
    x[3] *= 1000  # large values in another row must not matter
    linear = FORMATS["int8"](weight, bias)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(len(x))])
    for rows in (1, 2, 5, 9):
        assert torch.equal(linear(x[:rows]), alone[:rows])


@needs["int8"]
@pytest.mark.parametrize("formats", [FORMATS, DRAFTER_FORMATS], ids=["target", "drafter"])
def test_int8_of_zeros_is_the_bias(formats):
    weight, bias, _ = make(64, 48)
    for rows in (1, 2):
        assert torch.equal(formats["int8"](weight, bias)(torch.zeros(rows, 64)), bias.expand(rows, -1))


@needs["packed"]
@pytest.mark.parametrize("shape", [(576, 960), (1536, 1536)])
def test_packed_rows_agree_to_rounding(shape):
    weight, bias, x = make(*shape)
    linear = FORMATS["packed"](weight, bias)
    for rows in range(1, 9):
        assert relative_error(linear(x[:rows]), linear(x)[:rows]) <= 1e-6
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            assert torch.equal(linear(x[:rows]), linear(x)[:rows])


def test_bfloat16_computes_in_bfloat16():
    weight, _, x = make(64, 48)
    y = FORMATS["bfloat16"](weight.bfloat16(), None)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert relative_error(y.float(), F.linear(x, weight)) <= 0.02


def test_auto_on_cpu():
    assert resolve_precision("auto", CPU, "target") == ("packed" if has_packed() else "float32")
    assert resolve_precision("auto", CPU, "drafter") == (
        "int8" if has_int8() else resolve_precision("auto", CPU, "target")
    )


def test_auto_on_cuda():
    assert resolve_precision("auto", torch.device("cuda:0"), "target") == "bfloat16"
    assert resolve_precision("auto", torch.device("cuda:0"), "drafter") == "bfloat16"


@pytest.mark.parametrize(
    ("precision", "device", "role", "words"),
    [
        ("fp8", "cpu", "target", ["target_precision", "'fp8'", "bfloat16", "int8"]),
        ("nf4", "cpu", "drafter", ["draft_precision", "'nf4'", "CUDA"]),
        ("int8", "cuda:0", "drafter", ["draft_precision", "'int8'", "CPU"]),
        ("packed", "cuda:0", "target", ["target_precision", "'packed'", "CPU"]),
    ],
)
def test_wrong_precision_names_the_flag_and_the_allowed_values(precision, device, role, words):
    with pytest.raises(ValueError) as caught:
        resolve_precision(precision, torch.device(device), role)
    assert all(word in str(caught.value) for word in words)


def test_nf4_without_bitsandbytes_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pdevis.models.linear._has_bitsandbytes", lambda: False)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        resolve_precision("nf4", torch.device("cuda:0"), "target")


def test_storage_dtypes():
    assert storage_dtype("int8") == storage_dtype("packed") == torch.float32
    assert storage_dtype("nf4") == torch.bfloat16
    assert storage_dtype("float64") == torch.float64


@needs["int8"]
@pytest.mark.parametrize("weight", ["ones.float()", "quantized_from_integers(ones, torch.ones(64).double())"])
def test_int8_gives_no_warning(weight):
    """In a process of its own: torch gives its warning of quantised dtypes once."""
    code = f"""
import torch
from pdevis.models.linear import Int8Linear, quantized_from_integers
ones = torch.ones(64, 32, dtype=torch.int8)
Int8Linear({weight}, None)
"""
    run = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "UserWarning" not in run.stderr


@needs["int8"]
def test_quantised_weights_are_used_as_they_are():
    weight, bias, x = make(48, 64)
    computed = Int8Linear(weight, bias)
    integers, scales = computed.quantised.int_repr(), computed.quantised.q_per_channel_scales()
    engine = torch.backends.quantized.engine
    again = Int8Linear(quantized_from_integers(integers, scales), bias)
    assert torch.backends.quantized.engine == engine
    assert torch.equal(again.quantised.int_repr(), integers)
    assert torch.equal(again(x), computed(x))
    assert torch.equal(again(x[:1]), computed(x[:1]))
