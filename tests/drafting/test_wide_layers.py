"""Wide and staggered layers against the sum of their lanes computed one by one, and exact layers as their views."""

import pytest
import torch

from helpers.tiny_models import DENSE
from pdevis.config import DraftConfig
from pdevis.drafting.corrections import Corrections, LinearMap, load_corrections, save_corrections, weights_fingerprint
from pdevis.drafting.engine import DraftEngine
from pdevis.drafting.schedule import Group, parse_schedule
from pdevis.drafting.wide_layers import StaggeredLayer, make_layer, prepare_schedule
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.layers import RMSNorm, UnitRMSNorm
from pdevis.models.linear import has_int8, has_packed
from pdevis.models.stack import DecoderStack

LAYERS = 6
CPU = torch.device("cpu")
PROMPT = torch.arange(23) * 17 % 256
ERRORS = {"float64": 1e-6, "float32": 1e-5, "packed": 1e-5, "bfloat16": 0.03, "int8": 0.1}
FORMATS = ["float64", "float32", "bfloat16", *["packed"] * has_packed(), *["int8"] * has_int8()]
OPTIONS = {"llama": {"attention_bias": True, "mlp_bias": True}}


def make_stack(tiny_model, arch: str, precision: str) -> DecoderStack:
    model = tiny_model(arch, layers=LAYERS, dtype=torch.float32, **OPTIONS.get(arch, {}))
    g = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.data += 0.2 * torch.randn(weight.shape, generator=g).to(weight.dtype)
    return DecoderStack(read_weights(model, precision, CPU, drafter=True))


def lane_by_lane(stack: DecoderStack, group: Group, h: torch.Tensor, step) -> torch.Tensor:
    """Compute a group as it is defined: all attentions read h, each batch of MLPs all updates before it."""
    u = h + sum(stack.attention(layer, h, step) for layer in group.layers)
    for batch in group.mlp_batches:
        u = u + sum(stack.mlp(layer, u) for layer in batch)
    return u


def staggered_lanes(stack: DecoderStack, group: Group, h: torch.Tensor, step) -> torch.Tensor:
    states = [h]
    for layer in group.layers:
        states.append(states[-1] + stack.attention(layer, h, step))
    update = 0
    for batch in group.mlp_batches:
        inputs = [states[layer - group.layers[0] + 1] + update for layer in batch]
        update = update + sum(stack.mlp(layer, state) for layer, state in zip(batch, inputs, strict=True))
    return states[-1] + update


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).float().norm() / expected.float().norm()).item()


@torch.inference_mode()
def after_prompt(stack: DecoderStack, tokens: int):
    stack.rewind(0)
    stack.prefill(PROMPT)
    ids = torch.arange(tokens) * 31 % 256
    return stack.embed(ids), stack.begin(tokens)


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("precision", FORMATS)
def test_a_wide_layer_is_the_sum_of_its_lanes(tiny_model, arch, precision):
    stack = make_stack(tiny_model, arch, precision)
    with torch.inference_mode():
        for group in (Group((1, 2), 2), Group((1, 2, 3), 3), Group((1, 2, 3, 4), 2), Group((2, 3, 4, 5), 1)):
            for tokens in (1, 3, 20):  # row by row, and under a mask
                h, step = after_prompt(stack, tokens)
                expected = lane_by_lane(stack, group, h, step) - h
                entries = stack.cache.storage[:, step.start : step.end].clone()
                stack.cache.storage[:, step.start : step.end] = 0
                update = make_layer(stack, group).run(stack, h, step) - h
                assert relative_error(update, expected) <= ERRORS[precision]
                written = stack.cache.storage[list(group.layers), step.start : step.end]
                assert relative_error(written, entries[list(group.layers)]) <= ERRORS[precision]


@pytest.mark.parametrize("precision", FORMATS)
def test_a_staggered_layer_is_the_sum_of_its_lanes(tiny_model, precision):
    stack = make_stack(tiny_model, "qwen3", precision)
    for text in ("0,1+2,3-5", "0,1+2+3,4-5", "0,1+2+3+4/2,5", "0-1,2+3+4+5/1"):
        prepared = prepare_schedule(stack, parse_schedule(text, LAYERS), stagger=True)
        layer = next(layer for layer in prepared.layers if isinstance(layer, StaggeredLayer))
        group = next(group for group in prepared.schedule.groups if len(group.layers) > 1)
        with torch.inference_mode():
            h, step = after_prompt(stack, 2)
            expected = staggered_lanes(stack, group, h, step) - h
            assert relative_error(layer.run(stack, h, step) - h, expected) <= ERRORS[precision]


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exact_layers_are_views_of_wide_matrices_and_compute_the_same(tiny_model, arch, precision):
    plain = make_stack(tiny_model, arch, precision)
    stack = DecoderStack(plain.weights)
    prepared = prepare_schedule(stack, parse_schedule("0,1+2,3+4+5", LAYERS))
    assert prepared.added_bytes == 0
    second = prepare_schedule(stack, parse_schedule("0,1+2+3,4-5", LAYERS))  # is not shared: its matrices are extra
    parts = [stack.layers[layer] for layer in (1, 2, 3)]
    linears = [linear for part in parts for linear in (part.attention.qkv, part.attention.output)]
    linears += [linear for part in parts for linear in (part.mlp.gate_up, part.mlp.down)]
    assert second.added_bytes == sum(linear.weight.nbytes for linear in linears)
    wide = prepared.layers[1]
    for lane, layer in enumerate((1, 2)):
        exact = stack.layers[layer]
        for linear, whole in ((exact.attention.qkv, wide.attention.qkv), (exact.mlp.down, wide.mlps[0].down)):
            assert linear.weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()
        assert isinstance(exact.attention.norm, UnitRMSNorm)
        start = lane * len(wide.attention.qkv.weight) // 2
        assert exact.attention.qkv.weight.data_ptr() == wide.attention.qkv.weight[start:].data_ptr()
    assert isinstance(plain.layers[1].attention.norm, RMSNorm)  # the other stack's layers stay as they were
    with torch.inference_mode():
        assert relative_error(stack.forward(PROMPT), plain.forward(PROMPT)) <= ERRORS[precision]


def test_weights_that_another_model_uses_too_are_copied(tiny_model):
    stack = make_stack(tiny_model, "qwen2", "float32")
    other = stack.with_own_cache()
    with torch.inference_mode():
        expected = other.forward(PROMPT)
        prepared = prepare_schedule(stack, parse_schedule("0,1+2,3-5", LAYERS))
        assert prepared.added_bytes == sum(
            linear.weight.nbytes
            for layer in (1, 2)
            for linear in (stack.layers[layer].attention.qkv, stack.layers[layer].attention.output)
        ) + sum(
            linear.weight.nbytes
            for layer in (1, 2)
            for linear in (stack.layers[layer].mlp.gate_up, stack.layers[layer].mlp.down)
        )
        other.rewind(0)
        assert torch.equal(other.forward(PROMPT), expected)
        assert torch.equal(stack.forward(PROMPT), expected)


def test_copies_of_packed_and_quantised_weights_are_counted(tiny_model):
    for precision, size in (("packed", 4), ("int8", 1)):
        if precision in FORMATS:
            stack = make_stack(tiny_model, "qwen2", precision)
            part = stack.layers[1]
            linears = (part.attention.qkv, part.attention.output, part.mlp.gate_up, part.mlp.down)
            numbers = sum(getattr(linear, "linear", linear).dense_weight().numel() for linear in linears)
            prepared = prepare_schedule(stack, parse_schedule("0,1+2,3-5", LAYERS))
            assert prepared.added_bytes == 2 * size * numbers


def test_prepared_layers_are_made_once(tiny_model):
    stack = make_stack(tiny_model, "llama", "float32")
    schedule = parse_schedule("0,1+2,3-5", LAYERS)
    assert prepare_schedule(stack, schedule) is prepare_schedule(stack, schedule)
    assert prepare_schedule(stack, schedule) is not prepare_schedule(stack, schedule, stagger=True)


@pytest.mark.parametrize("precision", ["float64", *(["int8"] if has_int8() else [])])
@pytest.mark.parametrize("rank", [None, 5])
def test_a_correction_is_folded_into_the_matrix_that_reads_or_writes(tiny_model, precision, rank):
    stack = make_stack(tiny_model, "qwen2", precision)
    size, g = stack.weights.embedding.shape[1], torch.Generator().manual_seed(1)

    def random_map() -> LinearMap:
        if rank is None:
            return LinearMap(None, 0.05 * torch.randn(size, size, generator=g))
        return LinearMap(0.3 * torch.randn(size, rank, generator=g), 0.3 * torch.randn(rank, size, generator=g))

    maps = {name: random_map() for name in ("attention.2", "mlp.1", "mlp.2", "write.4")}

    def mapped(name: str, x: torch.Tensor) -> torch.Tensor:
        linear_map = maps[name]
        change = x.float() if linear_map.u is None else x.float() @ linear_map.u
        return x + (change @ linear_map.v).to(x.dtype)

    def corrected_mlp(layer: int, u: torch.Tensor) -> torch.Tensor:
        mlp = stack.layers[layer].mlp
        unit = u / u.norm(dim=-1, keepdim=True)
        # an RMS norm does not see the length of its input, so the mapped unit state keeps its own
        x = mapped(f"mlp.{layer}", unit)
        scale = size**0.5 if isinstance(mlp.norm, RMSNorm) else 1.0
        weight = mlp.norm.weight if isinstance(mlp.norm, RMSNorm) else 1.0
        return mlp.down(mlp.activate(mlp.gate_up(x * weight * scale)))

    corrections = Corrections(weights_fingerprint(stack.weights), "", maps)
    with torch.inference_mode():
        h, step = after_prompt(stack, 1)
        u = h + stack.attention(1, h, step)
        wide = make_layer(stack, Group((1, 2), 2), corrections)
        u = h + wide.attention.output(stack.mix_heads(wide.attention, h, step))
        expected = sum(corrected_mlp(layer, u) for layer in (1, 2))
        actual = wide.mlps[0].down(wide.mlps[0].inner(u))
        assert relative_error(actual, expected) <= ERRORS[precision]
        written = make_layer(stack, Group((4,)), corrections).mlps[0]
        actual = written.down(written.inner(u))
        assert relative_error(actual, mapped("write.4", stack.mlp(4, u))) <= ERRORS[precision]


def test_corrections_survive_their_file(tiny_model, tmp_path):
    stack = make_stack(tiny_model, "qwen2", "float32")
    maps = {
        "attention.2": LinearMap(torch.ones(64, 2), torch.ones(2, 64)),
        "mlp.2": LinearMap(None, torch.ones(64, 64)),
    }
    made = Corrections(weights_fingerprint(stack.weights), "0,1+2,3-5", maps, {"tokens": "12"})
    save_corrections(tmp_path / "made.safetensors", made)
    read = load_corrections(tmp_path / "made.safetensors")
    assert (read.model, read.schedule, read.provenance) == (made.model, made.schedule, made.provenance)
    assert read.maps.keys() == maps.keys()
    assert all(torch.equal(read.maps[name].v.float(), maps[name].v) for name in maps)
    assert torch.equal(read.maps["attention.2"].u.float(), maps["attention.2"].u)


def test_corrections_of_another_model_or_format_are_refused(tiny_model, tmp_path):
    other = make_stack(tiny_model, "llama", "float32")
    save_corrections(
        tmp_path / "o.safetensors",
        Corrections(weights_fingerprint(other.weights), "0,1+2,3-5", {"mlp.2": LinearMap(None, torch.zeros(64, 64))}),
    )
    config = DraftConfig("parallel", check="static", schedule="0,1+2,3-5", corrections=str(tmp_path / "o.safetensors"))
    DraftEngine(other, config)
    for arch, precision in (("qwen2", "float32"), ("llama", "float64")):
        stack = make_stack(tiny_model, arch, precision)
        with pytest.raises(ValueError, match=r"corrections = '.*o\.safetensors': were fitted for another drafter"):
            DraftEngine(stack, config)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_corrections_file_that_is_none_is_one_line(tmp_path, content):
    file = tmp_path / "broken.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"corrections = '.*broken\.safetensors': ") as error:
        load_corrections(file)
    assert "\n" not in str(error.value)
