"""A model out of a GGUF file, unpacked into plain floating-point weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def read_gguf_model(folder: str | Path, file: str, dtype: torch.dtype, **options: Any) -> Any:
    """The transformers model of folder/file, in eval mode, every weight in `dtype`.

    Raises whatever transformers raises for a file that is broken or of an unknown architecture.
    """
    if hasattr(transformers, "GgufConfig"):  # releases that can compute on packed blocks would otherwise do so
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    # Nothing quantised is left, but the model still says so, and then refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return loaded


def read_gguf_tokenizer(folder: str | Path, file: str, **options: Any) -> Any:
    """The tokenizer that the GGUF file holds, its chat template included."""
    return AutoTokenizer.from_pretrained(folder, gguf_file=file, **options)
