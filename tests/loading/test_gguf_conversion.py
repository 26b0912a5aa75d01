"""The embedded model's conversion: transformers' own numbers, a file of the library's form, no foreign output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from pdevis.loading.gguf_conversion import convert

HEADS, KV_HEADS, HIDDEN, INNER, LAYERS = 4, 2, 64, 96, 2
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "1"]
KINDS = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write_gguf(path: Path) -> None:
    """A Llama of two layers in the kinds of blocks that the embedded model has."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(0)

    def add(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
        weight = random.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)

    types = gguf.GGMLQuantizationType
    add("token_embd.weight", (len(WORDS), HIDDEN), types.Q8_0)
    add("output_norm.weight", (HIDDEN,), types.F32)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", (HIDDEN,), types.F32)
        for name, shape in KINDS.items():
            add(f"blk.{layer}.{name}.weight", shape, types.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def read_with_transformers(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def test_weights_and_config_are_those_that_transformers_reads(
    gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes: list[int] = []
    convert(gguf_file, tmp_path / "model", on_written=sizes.append)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    expected = read_with_transformers(gguf_file)
    weights = expected.state_dict()
    del weights["lm_head.weight"]  # the embedding
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert sum(sizes) == sum(weight.nbytes for weight in weights.values())
    config = AutoConfig.from_pretrained(tmp_path / "model")
    names = ("hidden_size", "num_key_value_heads", "head_dim", "rope_parameters", "rms_norm_eps", "eos_token_id")
    for name in (*names, "vocab_size", "max_position_embeddings", "tie_word_embeddings", "intermediate_size"):
        assert getattr(config, name) == getattr(expected.config, name), name
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_converted_folder_is_a_model(gguf_file: Path, tmp_path: Path) -> None:
    convert(gguf_file, tmp_path / "model")
    ids = torch.tensor([[3, 4, 6, 7]])
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
        expected = read_with_transformers(gguf_file)(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
