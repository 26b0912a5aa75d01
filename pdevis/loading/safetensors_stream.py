"""Weights read from safetensors files module by module, so that memory never holds a model and its packed form.

The transformers model is built on the "meta" device for its structure. `WeightReader` fills each module with weights
when it needs them and releases them afterwards. transformers reads files of other formats, all at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from pdevis.loading.catalog import Source
from pdevis.util.validation import ModelLoadError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """The tensors of a folder's safetensors files, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX_FILE).is_file():
            self.files: dict[str, str] = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        else:
            with safe_open(folder / SINGLE_FILE, framework="pt") as file:
                self.files = dict.fromkeys(file.keys(), SINGLE_FILE)

    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Load the weights named `prefix.…` into a module on "meta"."""
        names = {key: f"{prefix}.{key}" for key in module.state_dict()}
        tensors = {}
        # A file is opened again for each module: what was read from it counts as used memory until it is closed.
        for file in {self.files[name] for name in names.values()}:
            with safe_open(self.folder / file, framework="pt") as opened:
                tensors |= {key: opened.get_tensor(name) for key, name in names.items() if self.files[name] == file}
        module.load_state_dict(tensors, assign=True)

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of every tensor, without reading any."""
        shapes = {}
        for file in set(self.files.values()):
            with safe_open(self.folder / file, framework="pt") as opened:
                shapes |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
        return shapes


class StreamedModel:
    """The parts of a transformers model that `WeightReader` needs, its weights still on disk."""

    def __init__(self, source: Source, folder: Path, config: Any) -> None:
        self.config = config
        self.weights = SafetensorsFolder(folder)
        with torch.device("meta"):
            meta_model = AutoModelForCausalLM.from_config(config)
        self.model, self.lm_head = meta_model.model, meta_model.lm_head
        self.model.rotary_emb = type(self.model.rotary_emb)(config=config)  # computed, not stored
        self.tied = bool(config.tie_word_embeddings)
        try:
            self.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:
            self.generation_config = meta_model.generation_config
        self._check_shapes(source, {key: list(tensor.shape) for key, tensor in meta_model.state_dict().items()})

    def fill(self, module: torch.nn.Module, name: str) -> None:
        """Load the weights of one of the model's modules."""
        tied = self.tied and name == "lm_head" and "lm_head.weight" not in self.weights.files
        self.weights.fill(module, "model.embed_tokens" if tied else name)

    def _check_shapes(self, source: Source, expected: dict[str, list[int]]) -> None:
        shapes = self.weights.shapes()
        if self.tied:
            shapes.setdefault("lm_head.weight", shapes.get("model.embed_tokens.weight", []))
        check_complete(source, sorted(key for key, shape in expected.items() if shapes.get(key) != shape))


def check_complete(source: Source, missing: list[str]) -> None:
    """Raise ModelLoadError if weights that the config requires are missing from the files, or differ in shape."""
    if missing:
        raise ModelLoadError(
            f"model = {source.name!r}: its files lack {len(missing)} weights that the config requires, "
            f"{missing[0]} first; download the model again"
        )


def stream_model(source: Source, config: Any) -> StreamedModel | None:
    """Open the model of a source for reading module by module; None if its files have another format."""
    if source.gguf_file:
        return None
    if source.kind == "hub":
        patterns = ["model*.safetensors", INDEX_FILE, "generation_config.json"]
        folder = Path(snapshot_download(source.location, allow_patterns=patterns, local_files_only=source.local_only))
    else:
        folder = Path(source.location)
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return None
    return StreamedModel(source, folder, config)
