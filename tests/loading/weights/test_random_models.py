"""random:KEY: published dimensions, weights without files, and a tokenizer of bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdevis import DecodeConfig, DraftConfig, load_pair
from pdevis.loading.catalog import CATALOG, PUBLISHED_CONFIGS, resolve
from pdevis.loading.checkpoint import find_source, read_class_config, read_config, read_model
from pdevis.loading.weights.families import unsupported_reason, weight_shapes
from pdevis.loading.weights.random_models import RandomTensors, byte_tokenizer
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 272}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture
def tiny(monkeypatch):
    """Make the models of some keys tiny."""
    for key in ("llama-1b", "qwen-8b"):
        monkeypatch.setitem(PUBLISHED_CONFIGS, key, PUBLISHED_CONFIGS[key] | SIZES | HEADS)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    monkeypatch.setitem(PUBLISHED_CONFIGS, "qwen-30b-I", PUBLISHED_CONFIGS["qwen-30b-I"] | SIZES | HEADS | experts)


def test_every_key_has_dimensions():
    assert PUBLISHED_CONFIGS.keys() == CATALOG.keys()


@pytest.mark.parametrize("key", CATALOG)
def test_both_ways_to_read_a_config_agree(key):
    source = find_source(f"random:{key}")
    config, of_class = read_config(source), read_class_config(source)
    assert config.model_type == of_class.model_type
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "tie_word_embeddings", "head_dim"):
        assert getattr(config, name) == getattr(of_class, name), name
    assert config.rope_parameters["rope_theta"] == of_class.rope_parameters["rope_theta"]
    if "moe" not in config.model_type and "next" not in config.model_type:
        assert unsupported_reason(config) is None
        assert weight_shapes(config) == weight_shapes(of_class)


@pytest.mark.parametrize(
    ("key", "billions"),
    [
        ("llama-1b", 1.24),
        ("llama-3b", 3.21),
        ("llama-8b", 8.03),
        ("llama-70b", 70.6),
        ("qwen-0.6b", 0.6),
        ("qwen-1.7b", 1.72),
        ("qwen-4b", 4.02),
        ("qwen-8b", 8.19),
        ("qwen-32b", 32.8),
        ("smollm2-135m", 0.135),
    ],
)
def test_the_dimensions_give_the_published_number_of_weights(key, billions):
    config = read_config(find_source(f"random:{key}"))
    shapes = weight_shapes(config)
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


def test_names():
    source = resolve("random:qwen-8b")
    assert (source.kind, source.location, source.name) == ("random", "qwen-8b", "random:qwen-8b")
    for name in ("random:", "random:qwen-9b", "random:/tmp"):
        with pytest.raises(ModelLoadError, match="must be random:KEY with a key of llama-1b"):
            resolve(name)


def test_weights_depend_on_the_name_alone():
    config = read_config(find_source("random:smollm2-135m"))
    tensors = RandomTensors(config, torch.float32, CPU)
    name = "model.layers.3.mlp.down_proj.weight"
    assert torch.equal(tensors.tensor(name), RandomTensors(config, torch.float32, CPU).tensor(name))
    assert not torch.equal(tensors.tensor(name), tensors.tensor("model.layers.4.mlp.down_proj.weight"))
    assert torch.equal(tensors.tensor("lm_head.weight"), tensors.tensor("model.embed_tokens.weight"))
    assert tensors.tensor(name).std() == pytest.approx(0.02, rel=0.01)
    assert torch.equal(tensors.tensor("model.norm.weight"), torch.ones(576))


def test_the_tokenizer_takes_any_text():
    tokenizer = byte_tokenizer()
    text = "naïve 你好 🙂\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == "<|end|>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|begin|><|user|>Hi<|end|><|assistant|>"
    assert len(tokenizer(prompt)["input_ids"]) == 6


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
def test_a_pair_decodes(tiny, precision):
    pair = load_pair(
        "random:qwen-8b", "random:llama-1b", device="cpu", target_precision=precision, draft=DraftConfig("skip")
    )
    config = DecodeConfig(max_new_tokens=8, eos_ids=())
    assert pair.generate("Hello", config).ids == pair.generate("Hello", config, "target").ids
    assert pair.describe()["target"] == "random:qwen-8b"


def test_transformers_has_the_same_weights(tiny):
    pair = load_pair("random:llama-1b", device="cpu", target_precision="float32")
    ids = pair.encode("Hello")
    model = read_model(find_source("random:llama-1b"), torch.float32, CPU)
    expected = model(torch.tensor([ids])).logits[0]
    pair.target.rewind(0)
    torch.testing.assert_close(pair.target.forward(torch.tensor(ids)), expected, rtol=1e-4, atol=1e-5)


def test_a_family_of_transformers(tiny):
    pair = load_pair("random:qwen-30b-I", "random:qwen-8b", device="cpu", target_precision="float32")
    config = DecodeConfig(max_new_tokens=4, eos_ids=())
    assert pair.generate("Hello", config).ids == pair.generate("Hello", config, "target").ids


def test_what_is_refused(tiny, tiny_folder, monkeypatch):
    with pytest.raises(ModelLoadError, match="different tokenizers"):
        load_pair("random:llama-1b", str(tiny_folder("llama")), device="cpu")
    with pytest.raises(ModelLoadError, match="nf4 is not supported for random weights"):
        read_model(find_source("random:qwen-30b-I"), torch.float32, CPU, nf4=True)


def test_schedules_are_kept_by_name(tiny, monkeypatch, tmp_path):
    from pdevis.calibrate import schedule_source

    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path))
    for name in ("PART_POSITIONS", "SCHEDULE_POSITIONS"):
        monkeypatch.setattr(schedule_source, name, 8)
    monkeypatch.setitem(PUBLISHED_CONFIGS, "llama-1b", PUBLISHED_CONFIGS["llama-1b"] | {"num_hidden_layers": 4})
    draft = DraftConfig("skip", check="static", retention=0.0)
    options: dict[str, Any] = {"device": "cpu", "draft": draft}
    first = load_pair("random:llama-1b", **options).describe()["schedule"]
    lines: list[str] = []
    assert load_pair("random:llama-1b", on_progress=lines.append, **options).describe()["schedule"] == first
    assert not any("effect of changing" in line for line in lines)
