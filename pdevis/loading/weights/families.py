"""Families of models that a `DecoderStack` runs: the names of their weights, their config, their rotary frequencies.

transformers' config class of a family may import most of its modelling code, which takes longer than reading a small
model. So a plain config.json is read into `FamilyConfig`, which gives the same values as the family's class. If a value
is missing or of an unusual form, that class reads the config.

To support another family, add it to `FAMILIES`; CONTRIBUTING.md has an example and says what to check before.

Shapes: H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pdevis.util.files import parse_json, read_text

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the length
PLAIN_ROPE_TYPES = ("default", "llama3")  # which no family's config class renames or gives other values
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class FamilySpec:
    """Names of a family's modules in transformers, and settings of its config; its forward must be Llama's otherwise.

    Args:
        qkv, gate_up: several names are projections that are fused into one product.
        qkv_bias, output_bias, mlp_bias: True, False, or the name of the setting in the config.
        slides: a value of `sliding_window` makes attention slide; False if it only does so by `layer_types` or never.
        required: settings without which transformers' class has to read config.json, since it has defaults for them.
            Those that a bias names, and `sliding_window` of a family that slides, need not be listed.
    """

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    qk_norm: tuple[str, str] | None = None
    attention_output: str = "o_proj"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    slides: bool = True
    required: tuple[str, ...] = ()

    @property
    def bias_settings(self) -> tuple[str, ...]:
        """The settings of the config that say which projections have a bias."""
        return tuple(bias for bias in (self.qkv_bias, self.output_bias, self.mlp_bias) if isinstance(bias, str))


FAMILIES = {
    "llama": FamilySpec(mlp_bias="mlp_bias", slides=False),
    "qwen2": FamilySpec(qkv_bias=True, output_bias=False, slides=False),
    "qwen3": FamilySpec(qk_norm=("q_norm", "k_norm"), slides=False, required=("head_dim",)),
}


@strict
class FamilyConfig(PreTrainedConfig):
    """Config of a supported family without its class: the two fields make transformers standardise the rope values."""

    max_position_embeddings: int = 0
    rope_parameters: dict[str, Any] | None = None


def unsupported_reason(config: Any) -> str | None:
    """Return why a model with this transformers config cannot run as a `DecoderStack`; None if it can."""
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} (supported: {', '.join(FAMILIES)})"
    if getattr(config, "quantization_config", None):
        return "weights that are already quantised"
    if config.is_heterogeneous:
        return "layers with settings of their own"
    rope = config.rope_parameters
    if any(isinstance(value, dict) for value in rope.values()):
        return "a rotary embedding per kind of layer"
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"rope type {rope['rope_type']!r} (supported: {', '.join(ROPE_TYPES)})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "partial rotary embedding"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} (supported: silu)"
    slides = FAMILIES[config.model_type].slides and getattr(config, "sliding_window", None) is not None
    if slides or any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "sliding-window attention"
    return None


def read_family_config(file: Path, name: str) -> FamilyConfig | None:
    """Read the config.json of a supported family without its config class; None if only that class can read it.

    Args:
        file: config.json.
        name: the hub id or folder, which the config keeps as `name_or_path`.
    """
    return family_config(parse_json(read_text(file)), name)


def family_config(values: Any, name: str) -> FamilyConfig | None:
    """Return the config with the values of a config.json, which are changed; as `read_family_config`."""
    if not isinstance(values, dict) or not _is_plain(values):
        return None
    family = values.pop("model_type")
    if values.get("head_dim") is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    config = FamilyConfig(**values | {"_name_or_path": name})
    config.model_type = family
    return config


def _is_plain(values: dict[str, Any]) -> bool:
    """Return True if a config.json is of a supported family and leaves no value to the defaults of its class."""

    def is_positive(key: str) -> bool:
        return isinstance(values.get(key), int) and values[key] > 0

    if values.get("model_type") not in FAMILIES:
        return False
    family = FAMILIES[values["model_type"]]
    return (
        all(map(is_positive, SIZES))
        and values["hidden_size"] % values["num_attention_heads"] == 0
        and (values.get("head_dim") is None or is_positive("head_dim"))
        and isinstance(values.get("rms_norm_eps"), float)
        and isinstance(values.get("hidden_act"), str)
        and all(isinstance(values.get(key), bool) for key in ("tie_word_embeddings", *family.bias_settings))
        and all(values.get(key) is not None for key in family.required)
        and "eos_token_id" in values
        and ("sliding_window" in values or not family.slides)
        and not values.get("use_sliding_window")
        and not values.get("per_layer_config")
        and _has_plain_rope(values)
    )


def _has_plain_rope(values: dict[str, Any]) -> bool:
    """Return True if a config.json gives the rotary embedding in one of the forms that all families read alike.

    Files on the hub have `rope_theta` apart, and `rope_scaling` as null or with the type as "type" or "rope_type".
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    return (
        isinstance(rope, dict)
        and rope.get("rope_type", rope.get("type", "default")) in PLAIN_ROPE_TYPES
        and isinstance(rope.get("rope_theta", values.get("rope_theta")), (int, float))
        and not any(isinstance(value, dict) for value in rope.values())
    )


def head_size(config: Any) -> int:
    """Return D."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_frequencies(config: Any) -> tuple[Tensor, float]:
    """Return the frequencies of the rotary embedding, [D / 2] in float32, and the factor of its cosines and sines."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type != "default":
        return ROPE_INIT_FUNCTIONS[rope_type](config)
    size = head_size(config)
    return 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size)), 1.0


def layer_name(number: int) -> str:
    """Return the name of a decoder layer in transformers."""
    return f"model.layers.{number}"


def weight_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of all weights that a model with this config has."""
    hidden = config.hidden_size
    shapes = {
        f"{EMBEDDING}.weight": (config.vocab_size, hidden),
        f"{FINAL_NORM}.weight": (hidden,),
        f"{HEAD}.weight": (config.vocab_size, hidden),
    }
    layer = _layer_shapes(config)
    for number in range(config.num_hidden_layers):
        shapes |= {f"{layer_name(number)}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    family, hidden, inner = FAMILIES[config.model_type], config.hidden_size, config.intermediate_size
    size = head_size(config)
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    shapes: dict[str, tuple[int, ...]] = {
        f"{family.attention_norm}.weight": (hidden,),
        f"{family.mlp_norm}.weight": (hidden,),
    }
    if family.qk_norm:
        shapes |= {f"self_attn.{name}.weight": (size,) for name in family.qk_norm}

    def add(part: str, name: str, rows: int, columns: int, bias: bool | str) -> None:
        shapes[f"{part}.{name}.weight"] = (rows, columns)
        if getattr(config, bias) if isinstance(bias, str) else bias:
            shapes[f"{part}.{name}.bias"] = (rows,)

    qkv_rows = (queries, keys, keys) if len(family.qkv) == 3 else (queries + 2 * keys,)
    for name, rows in zip(family.qkv, qkv_rows, strict=True):
        add("self_attn", name, rows, hidden, family.qkv_bias)
    add("self_attn", family.attention_output, hidden, queries, family.output_bias)
    for name in family.gate_up:
        add("mlp", name, 2 * inner // len(family.gate_up), hidden, family.mlp_bias)
    add("mlp", family.down, hidden, inner, family.mlp_bias)
    return shapes
