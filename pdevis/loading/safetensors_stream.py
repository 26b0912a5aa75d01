"""Weights straight out of safetensors files, module by module: a model never stands in memory beside its packed form.

The transformers model is made without memory (on the "meta" device) for its structure; `read_weights` has each layer
filled when it comes to it, and emptied behind. Files in other formats are read whole, by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from pdevis.loading.catalog import ModelLoadError, Source

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Shards:
    """The tensors of a folder's safetensors files, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX).is_file():
            self.files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        else:
            with safe_open(folder / SINGLE, framework="pt") as file:
                self.files = dict.fromkeys(file.keys(), SINGLE)

    def fill(self, module: torch.nn.Module, name: str) -> None:
        """Give a module on "meta" its weights, those named `name.…`."""
        wanted = {key: f"{name}.{key}" for key in module.state_dict()}
        found = {}
        # A file is opened anew for each module: what has been read counts as memory until it is closed.
        for file in {self.files[full] for full in wanted.values()}:
            with safe_open(self.folder / file, framework="pt") as opened:
                here = {key: full for key, full in wanted.items() if self.files[full] == file}
                found |= {key: opened.get_tensor(full) for key, full in here.items()}
        module.load_state_dict(found, assign=True)

    def shapes(self) -> dict[str, list[int]]:
        """Of every tensor, without reading any."""
        found = {}
        for file in set(self.files.values()):
            with safe_open(self.folder / file, framework="pt") as opened:
                found |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
        return found


class StreamedModel:
    """What `read_weights` needs of a transformers model, its weights still on disk."""

    def __init__(self, source: Source, folder: Path, config: Any) -> None:
        self.config = config
        self.shards = Shards(folder)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        self.model, self.lm_head = whole.model, whole.lm_head
        self.model.rotary_emb = type(self.model.rotary_emb)(config=config)  # computed, not stored
        self.tied = bool(config.tie_word_embeddings)
        try:
            self.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:
            self.generation_config = whole.generation_config
        self._check(source, {key: list(tensor.shape) for key, tensor in whole.state_dict().items()})

    def fill(self, module: torch.nn.Module, name: str) -> None:
        """Give one of the model's modules its weights."""
        tied = self.tied and name == "lm_head" and "lm_head.weight" not in self.shards.files
        self.shards.fill(module, "model.embed_tokens" if tied else name)

    def _check(self, source: Source, wanted: dict[str, list[int]]) -> None:
        there = self.shards.shapes()
        if self.tied:
            there.setdefault("lm_head.weight", there.get("model.embed_tokens.weight", []))
        lacking = sorted(key for key, shape in wanted.items() if there.get(key) != shape)
        if lacking:
            raise ModelLoadError(
                f"model = {source.name!r}: its files lack {len(lacking)} weights that the config asks for, "
                f"{lacking[0]} first; download the model again"
            )


def stream_model(source: Source, config: Any) -> StreamedModel | None:
    """The model of a source, to be read module by module; None where its files are of another format."""
    if source.gguf_file:
        return None
    if source.kind == "hub":
        wanted = ["model*.safetensors", INDEX, "generation_config.json"]
        folder = Path(snapshot_download(source.location, allow_patterns=wanted, local_files_only=source.local_only))
    else:
        folder = Path(source.location)
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return None
    return StreamedModel(source, folder, config)
