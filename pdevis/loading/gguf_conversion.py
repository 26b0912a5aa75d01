"""Conversion of the embedded model's GGUF file to a transformers folder, with every weight in float32.

transformers can read the file too, but builds the whole model for that and takes several times as long. The numbers are
the same. The tokenizer is transformers'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers
from torch import Tensor

from pdevis.loading.hub import from_pretrained
from pdevis.loading.weights.safetensors_files import SINGLE_FILE, TensorEntry, write_safetensors
from pdevis.util.files import encode_json

TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, folder: Path, on_written: Callable[[int], None] = lambda size: None) -> None:
    """Convert the model and the tokenizer of a GGUF file of the Llama family, whose head is its embedding.

    Args:
        gguf: the file.
        folder: for the transformers files; it is created.
        on_written: called with the bytes of each weight after it is written.
    """
    from gguf import GGUFReader  # not at the top: it is needed only once

    folder.mkdir(exist_ok=True)
    reader = GGUFReader(gguf)
    config = _read_config(reader)
    special_tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", special_tokens)
    write_safetensors(folder / SINGLE_FILE, _entries(reader, config), on_written=on_written)
    _read_tokenizer(gguf).save_pretrained(folder)


def _read_config(reader: Any) -> dict[str, Any]:
    """Return the content of config.json."""

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads = value("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "dtype": "float32",
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "head_dim": value("llama.embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "max_position_embeddings": value("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": value("llama.block_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": value("llama.rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": value("llama.vocab_size"),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(encode_json(content, indent=2) + b"\n")


def _entries(reader: Any, config: dict[str, Any]) -> list[TensorEntry]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    entries = []
    for packed in reader.tensors:
        shape = tuple(int(size) for size in reversed(packed.shape))
        compute = partial(_unpack, packed, heads=heads.get(packed.name.split(".")[-2]))
        entries.append(TensorEntry(_name(packed.name), torch.float32, shape, compute))
    return sorted(entries, key=lambda entry: entry.name)


def _name(name: str) -> str:
    """Return the name in transformers of a weight of a GGUF file."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def _unpack(packed: Any, *, heads: int | None) -> Tensor:
    """Compute a weight. GGUF has the rows of each head of q and k as (pair, pair, …), transformers as (half, half)."""
    from gguf.quants import dequantize

    weight = torch.from_numpy(np.require(dequantize(packed.data, packed.tensor_type), requirements="W"))
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _read_tokenizer(gguf: Path) -> Any:
    """Read the GGUF's tokenizer and let it split digits as the original does: transformers drops that step."""
    tokenizer = from_pretrained(transformers.PreTrainedTokenizerFast, gguf.parent, gguf_file=gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer
