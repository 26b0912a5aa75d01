"""Model names: the catalog of keys and their hub ids, and the resolution of any other name.

A name is a catalog key, a hub id ("owner/name"), a local folder, a .gguf file, or "random:KEY" for a model of a key's
dimensions with random weights. Nothing is opened or downloaded here.

    python -c "from pdevis.loading.catalog import resolve; print(resolve('qwen-8b'))"
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pdevis.util.files import expand_user
from pdevis.util.validation import ModelLoadError

EMBEDDED = "smollm2-135m"

CATALOG = {
    "llama-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "qwen-0.6b": "Qwen/Qwen3-0.6B",
    "qwen-1.7b": "Qwen/Qwen3-1.7B",
    "qwen-4b": "Qwen/Qwen3-4B",
    "qwen-8b": "Qwen/Qwen3-8B",
    "qwen-32b": "Qwen/Qwen3-32B",
    "qwen-4b-I": "Qwen/Qwen3-4B-Instruct-2507",
    "qwen-30b-I": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "qwen-80b-I": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct",
}

RANDOM = "random:"  # before a key: random weights

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_ALLOWED = "(a hub id, owner/name, or a local folder is allowed too)"


# ---- published dimensions ----


def _llama(sizes: str, *, context: int = 131072, rope: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    return _config("llama", sizes, context=context, rope_scaling=rope, attention_bias=False, mlp_bias=False, **values)


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _qwen3(sizes: str, *, context: int = 40960, theta: float = 1e6, **values: Any) -> dict[str, Any]:
    values = {"model_type": "qwen3", "attention_bias": False, "use_sliding_window": False} | values
    kind = values.pop("model_type")
    return _config(kind, sizes, context=context, rope_theta=theta, rms_norm_eps=1e-6, vocab_size=151936, **values)


def _config(model_type: str, sizes: str, *, context: int, **values: Any) -> dict[str, Any]:
    """Return the values of a config.json; sizes: hidden, MLP, layers, query heads, key/value heads, head size."""
    hidden, inner, layers, heads, kv_heads, head_dim = map(int, sizes.split())
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "eos_token_id": None,
    } | values


# values of each model's config.json on the hub, for `random:KEY` and tools/memory_table.py
PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = {
    "llama-1b": _llama("2048 8192 16 32 8 64", rope=_llama3_rope(32.0)),
    "llama-3b": _llama("3072 8192 28 24 8 128", rope=_llama3_rope(32.0)),
    "llama-8b": _llama("4096 14336 32 32 8 128", rope=_llama3_rope(8.0), tie_word_embeddings=False),
    "llama-70b": _llama("8192 28672 80 64 8 128", context=8192, tie_word_embeddings=False),
    "qwen-0.6b": _qwen3("1024 3072 28 16 8 128"),
    "qwen-1.7b": _qwen3("2048 6144 28 16 8 128"),
    "qwen-4b": _qwen3("2560 9728 36 32 8 128"),
    "qwen-8b": _qwen3("4096 12288 36 32 8 128", tie_word_embeddings=False),
    "qwen-32b": _qwen3("5120 25600 64 64 8 128", tie_word_embeddings=False),
    "qwen-4b-I": _qwen3("2560 9728 36 32 8 128", context=262144, theta=5e6),
    "qwen-30b-I": _qwen3(
        "2048 6144 48 32 4 128",
        model_type="qwen3_moe",
        context=262144,
        theta=1e7,
        tie_word_embeddings=False,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "qwen-80b-I": _qwen3(
        "2048 5120 48 16 2 256",
        model_type="qwen3_next",
        context=262144,
        theta=1e7,
        tie_word_embeddings=False,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        partial_rotary_factor=0.25,
        full_attention_interval=4,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
    ),
    EMBEDDED: _llama("576 1536 30 9 3 64", context=8192, rope_theta=100000.0, vocab_size=49152, rms_norm_eps=1e-5),
}


# ---- names ----


@dataclass(frozen=True)
class Source:
    """The origin of a model's files.

    Args:
        name: as the user gave it.
        kind: `hub`, `folder`, `embedded` (downloaded from the package index), or `random` (without files).
        location: hub id or folder; for `embedded` the hub id of the same model, for `random` the catalog key.
        gguf_file: name of the folder's GGUF file that holds the model; None: safetensors and config.json.
        local_only: read files on disk only, without asking a server.
    """

    name: str
    kind: Literal["hub", "folder", "embedded", "random"]
    location: str
    gguf_file: str | None = None
    local_only: bool = False


def resolve(name: str | os.PathLike[str]) -> Source:
    """Return the source of a model name. A key has priority over a folder of that name ("./name" is the folder).

    Raises:
        ModelLoadError: if a key is not in the catalog (naming the nearest ones), or a path does not exist.
    """
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else name
    if not isinstance(text, str) or not text.strip():
        raise ModelLoadError(f"model = {text!r}: must be one of {', '.join(CATALOG)} {_ALLOWED}")
    if text in CATALOG:
        return Source(text, "embedded" if text == EMBEDDED else "hub", CATALOG[text])
    if text.startswith(RANDOM):
        key = text.removeprefix(RANDOM)
        if key not in CATALOG:
            raise ModelLoadError(f"model = {text!r}: must be {RANDOM}KEY with a key of {', '.join(CATALOG)}")
        return Source(text, "random", key, local_only=True)
    path = expand_user(text)
    if path.is_dir():
        return Source(text, "folder", str(path))
    if path.is_file():
        if path.suffix == ".gguf":
            return Source(text, "folder", str(path.parent), gguf_file=path.name)
        raise ModelLoadError(f"model = {text!r}: is a file; it must be a folder or a .gguf file")
    if _looks_like_path(text):
        raise ModelLoadError(f"model = {text!r}: this folder or file does not exist")
    if _HUB_ID.fullmatch(text):
        return Source(text, "hub", text)
    raise ModelLoadError(f"model = {text!r}: {_suggest(text)} {_ALLOWED}")


def _looks_like_path(text: str) -> bool:
    starts = text.startswith((".", "~", "/", "\\")) or Path(text).is_absolute()
    return starts or text.count("/") > 1 or text.endswith(("/", ".gguf"))


def _suggest(text: str) -> str:
    by_lower = {key.lower(): key for key in CATALOG}
    near = difflib.get_close_matches(text.lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return f"not in the catalog, did you mean {' or '.join(by_lower[key] for key in near)}?"
    return f"not in the catalog, which has {', '.join(CATALOG)}"
