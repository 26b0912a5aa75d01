"""The rotation of the residual stream: orthogonal, without effect on the model's function, and a gain in int8."""

import pytest
import torch

from helpers.tiny_models import DENSE
from pdevis.loading.weights.families import FAMILIES
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.linear import Int8Linear, has_int8
from pdevis.models.rotation import BlockHadamard, Rotation
from pdevis.models.stack import DecoderStack

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 7, 64, 576, 896])
def test_orthogonal_and_the_same_each_time(size):
    eye = torch.eye(size, dtype=torch.float64)
    q = Rotation(size).rotate_rows(eye)
    torch.testing.assert_close(q @ q.t(), eye)
    assert torch.equal(q, Rotation(size).rotate_rows(eye))
    x, weight = torch.randn(3, size, dtype=torch.float64), torch.randn(size, 5, dtype=torch.float64)
    torch.testing.assert_close(Rotation(size).rotate_rows(x), x @ q)
    torch.testing.assert_close(Rotation(size).rotate_columns(weight), q.t() @ weight)


def test_large_sizes_mix_all_coordinates():
    q = Rotation(576).rotate_rows(torch.eye(576))
    assert q.abs().max() < 0.5


@pytest.mark.parametrize("arch", DENSE)
def test_the_model_computes_the_same_function(tiny_model, arch):
    model = tiny_model(arch, **dict.fromkeys(FAMILIES[arch].bias_settings, True))
    g = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.data += 0.3 * torch.randn(weight.shape, generator=g)
    ids = torch.arange(40) * 7 % 256
    plain = DecoderStack(read_weights(model, "float64", CPU))
    rotated = DecoderStack(read_weights(model, "float64", CPU, rotate=True))
    assert not torch.allclose(rotated.weights.embedding, plain.weights.embedding)
    torch.testing.assert_close(rotated.forward(ids), plain.forward(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not has_int8(), reason="torch without fbgemm")
def test_int8_is_more_accurate_under_rotation_if_a_coordinate_is_large():
    g = torch.Generator().manual_seed(2)
    x, weight = torch.randn(20, 576, generator=g), torch.randn(200, 576, generator=g)
    x[:, 5] *= 100  # as in trained models: large, with small weights
    weight[:, 5] /= 100
    rotation = Rotation(576)

    def error(x: torch.Tensor, weight: torch.Tensor) -> float:
        expected = x @ weight.t()
        return ((Int8Linear(weight, None)(x) - expected).norm() / expected.norm()).item()

    assert error(rotation.rotate_rows(x), rotation.rotate_rows(weight)) < 0.5 * error(x, weight)


@pytest.mark.parametrize(("size", "block"), [(8960, 64), (4864, 64), (96, 8), (7, 1)])
def test_block_hadamard_is_its_own_inverse_and_rows_are_independent(size, block):
    hadamard, x = BlockHadamard(size), torch.randn(9, size)
    assert hadamard.block == block
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close(hadamard(x).norm(dim=-1), x.norm(dim=-1))
    for rows in range(1, 9):
        assert torch.equal(hadamard(x[:rows]), hadamard(x)[:rows])


def test_block_hadamard_spreads_an_outlier():
    x = torch.zeros(1, 8960)
    x[0, 17] = 100.0
    assert BlockHadamard(8960)(x).abs().max() < 13
