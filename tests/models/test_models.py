"""`DecoderStack` and `HFCausalLM` against transformers' forward, and rewinding against a fresh forward."""

import pytest
import torch

from helpers.tiny_models import ALL, DENSE
from pdevis.loading.weights.families import unsupported_reason
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.models.stack import DecoderStack

CPU = torch.device("cpu")
SLIDING = {  # family: settings with which its attention slides
    "qwen2": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0},
}
EXACT = 1e-4  # the libraries compute norms and recurrent states in float32 even for float64 models


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))


def reference(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None]).logits[0]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def with_random_norms(model):
    """Randomise norm weights and biases, which are all ones and zeros in a new model."""
    g = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            weight.data += 0.2 * torch.randn(weight.shape, generator=g)
    return model


def wrap(model, arch: str):
    return DecoderStack(read_weights(model, "float64", CPU)) if arch in DENSE else HFCausalLM(model, "float64")


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("packed", 1e-5)])
def test_stack_equals_transformers(tiny_model, arch, precision, error):
    model = with_random_norms(tiny_model(arch, dtype=torch.float32))
    stack = DecoderStack(read_weights(model, precision, CPU))
    ids = random_ids(90)
    expected = reference(model, ids)
    assert relative_error(stack.forward(ids), expected) <= error
    stack.rewind(0)
    stack.prefill(ids[:70])
    pieces = [stack.forward(ids[70:71]), stack.forward(ids[71:76]), stack.forward(ids[76:])]
    assert relative_error(torch.cat(pieces), expected[70:]) <= error


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_stack_equals_transformers_under_other_rope_scalings(tiny_model, rope):
    rope = rope | {"rope_theta": 10000.0, "original_max_position_embeddings": 128}
    model = tiny_model("llama", dtype=torch.float32, rope_parameters=rope)
    ids = random_ids(200)
    assert relative_error(DecoderStack(read_weights(model, "float32", CPU)).forward(ids), reference(model, ids)) <= 1e-5


def test_stack_in_bfloat16_is_close_to_transformers(tiny_model):
    model = tiny_model("qwen3", dtype=torch.bfloat16, initializer_range=0.05)
    ids = random_ids(40)
    actual = DecoderStack(read_weights(model, "bfloat16", CPU)).forward(ids)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual.float(), reference(model, ids).float()) <= 0.05


def test_prompt_longer_than_a_chunk_and_the_first_capacity(tiny_model):
    model = tiny_model("qwen2", dtype=torch.float32, max_position_embeddings=2048)
    stack = DecoderStack(read_weights(model, "float32", CPU))
    ids = random_ids(1300)
    stack.prefill(ids[:1200])
    assert relative_error(stack.forward(ids[1200:]), reference(model, ids)[1200:]) <= 1e-5
    assert stack.length == 1300


@pytest.mark.parametrize("arch", ALL)
def test_rewind_then_forward_equals_a_fresh_forward(tiny_model, arch):
    model = tiny_model(arch)
    ids, other = random_ids(40), random_ids(40, seed=1)
    lm = wrap(model, arch)
    lm.prefill(ids[:20])
    for kept in (25, 21, 24, 20):  # verify five tokens, keep some, go on with others
        lm.forward(other[:5])
        lm.rewind(kept)
        text = torch.cat([ids[:20], other[: kept - 20]])
        assert lm.length == kept
        actual = lm.forward(ids[30:33])
        assert relative_error(actual, reference(model, torch.cat([text, ids[30:33]]))[-3:]) <= EXACT
        lm.rewind(20)


@pytest.mark.parametrize("arch", ALL)
def test_rewind_to_zero_and_far_back(tiny_model, arch):
    model = tiny_model(arch)
    ids = random_ids(30)
    lm = wrap(model, arch)
    for part in ids.split(7):
        lm.forward(part)
    lm.rewind(3)
    assert relative_error(lm.forward(ids[3:9]), reference(model, ids[:9])[3:]) <= EXACT
    lm.rewind(0)
    assert relative_error(lm.forward(ids[5:9]), reference(model, ids[5:9])) <= EXACT


@pytest.mark.parametrize("arch", ["qwen3_moe", "qwen3_next"])
def test_two_rewinds_in_a_row(tiny_model, arch):
    model = tiny_model(arch)
    ids = random_ids(30)
    lm = wrap(model, arch)
    lm.forward(ids[:10])
    lm.forward(ids[10:16])
    lm.rewind(15)
    lm.rewind(12)
    assert relative_error(lm.forward(ids[20:22]), reference(model, torch.cat([ids[:12], ids[20:22]]))[-2:]) <= EXACT


@pytest.mark.parametrize("arch", ALL)
def test_interrupted_forward_leaves_the_model_usable(tiny_model, arch, monkeypatch):
    model = tiny_model(arch)
    ids = random_ids(20)
    lm = wrap(model, arch)
    lm.forward(ids[:10])
    calls = iter(range(100))

    def fail(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    if arch in DENSE:
        original = lm.mlp
        monkeypatch.setattr(lm, "mlp", fail)
    else:
        layer = type(model.model.layers[0])
        original_forward = layer.forward

        def original(*args, **kwargs):
            return original_forward(*args, **kwargs)

        monkeypatch.setattr(layer, "forward", lambda self, *args, **kwargs: fail(self, *args, **kwargs))
    with pytest.raises(KeyboardInterrupt):
        lm.forward(ids[10:14])
    monkeypatch.undo()
    assert lm.length == 10
    assert relative_error(lm.forward(ids[10:13]), reference(model, ids[:13])[10:]) <= EXACT


def test_a_failure_while_the_cache_grows_changes_nothing(tiny_model, monkeypatch):
    model = tiny_model("llama", max_position_embeddings=2048)
    ids = random_ids(600)
    stack = DecoderStack(read_weights(model, "float64", CPU))
    stack.prefill(ids[:500])
    monkeypatch.setattr(torch, "zeros", lambda *args, **options: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        stack.forward(ids[500:600])
    monkeypatch.undo()
    assert stack.length == 500
    assert relative_error(stack.forward(ids[500:600]), reference(model, ids)[500:]) <= EXACT


def test_a_long_history_is_replayed_in_pieces(tiny_model):
    model = tiny_model("qwen3_next", max_position_embeddings=2048)
    ids = random_ids(1300)
    lm = HFCausalLM(model, "float64")
    lm.prefill(ids)
    lm.rewind(1290)
    lm.rewind(1200)
    assert lm.length == 1200
    assert (
        relative_error(lm.forward(ids[1250:1253]), reference(model, torch.cat([ids[:1200], ids[1250:1253]]))[-3:])
        <= EXACT
    )


def test_two_stacks_share_weights_but_not_the_cache(tiny_model):
    model = tiny_model("llama")
    weights = read_weights(model, "float64", CPU)
    one, two = DecoderStack(weights), DecoderStack(weights)
    ids = random_ids(12)
    one.forward(ids[:6])
    two.forward(ids[6:])
    assert relative_error(one.forward(ids[6:8]), reference(model, ids[:8])[6:]) <= EXACT


def test_consume_frees_the_layers(tiny_model):
    model = tiny_model("llama")
    ids = random_ids(8)
    expected = reference(model, ids)
    stack = DecoderStack(read_weights(model, "float64", CPU, consume=True))
    assert all(weight.is_meta for weight in model.model.layers.parameters())
    assert relative_error(stack.forward(ids), expected) <= EXACT


@pytest.mark.parametrize(
    ("arch", "changes", "word"),
    [
        ("qwen3_moe", {}, "qwen3_moe"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "already quantised"),
        *((arch, changes, "sliding") for arch, changes in SLIDING.items()),
    ],
)
def test_unsupported_architectures_are_named(tiny_model, arch, changes, word):
    model = tiny_model(arch, **changes)
    assert word in unsupported_reason(model.config)
    with pytest.raises(ValueError, match=word):
        read_weights(model, "float64", CPU)


@pytest.mark.parametrize("arch", SLIDING)
def test_sliding_window_model_rewinds(tiny_model, arch):
    model = tiny_model(arch, **SLIDING[arch])
    ids = random_ids(60)
    lm = HFCausalLM(model, "float64")
    lm.prefill(ids[:40])
    lm.forward(ids[40:46])
    lm.rewind(42)
    assert relative_error(lm.forward(ids[50:53]), reference(model, torch.cat([ids[:42], ids[50:53]]))[-3:]) <= EXACT
