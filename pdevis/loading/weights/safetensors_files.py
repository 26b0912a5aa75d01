"""Weights in safetensors files, read and written tensor by tensor: memory never holds a model and its packed form.

`open_model` opens the files of a source and checks their shapes; `WeightReader` reads each tensor when it needs it.
transformers reads files of other formats, all at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig

from pdevis.loading.catalog import Source
from pdevis.loading.hub import from_pretrained
from pdevis.loading.weights.families import EMBEDDING, HEAD, weight_shapes
from pdevis.util.files import open_atomic, parse_json, read_text
from pdevis.util.validation import ModelLoadError

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.int8: "I8"}  # those that are written


class TensorSource(Protocol):
    """The weights of a model, by their names in transformers."""

    def names(self) -> Iterable[str]:
        """Return the names of all weights."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return a weight."""
        ...

    def release(self, prefix: str) -> None:
        """Free the weights named `prefix.…`, which are not read again."""
        ...


class SafetensorsFolder:
    """The tensors of a folder's safetensors files; a `TensorSource`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / INDEX_FILE).is_file():
            self._files: dict[str, str] = parse_json(read_text(folder / INDEX_FILE))["weight_map"]
        else:
            with safe_open(folder / SINGLE_FILE, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), SINGLE_FILE)

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in the order of their names."""
        return [self.folder / name for name in sorted(set(self._files.values()))]

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def tensor(self, name: str) -> Tensor:
        """Return a weight, mapped from disk. The head of a model without its own is the embedding."""
        if name == f"{HEAD}.weight" and name not in self._files:
            name = f"{EMBEDDING}.weight"
        # The file is opened again for each weight: what was read from it counts as used memory until it is closed.
        with safe_open(self.folder / self._files[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def release(self, prefix: str) -> None:
        """Do nothing: a weight is freed together with its last tensor."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, without reading any."""
        shapes = {}
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return shapes


class ModuleTensors:
    """The weights of a transformers model in memory; a `TensorSource`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def names(self) -> Iterable[str]:
        return (name for name, _ in self._model.named_parameters())

    def tensor(self, name: str) -> Tensor:
        return self._model.get_parameter(name).detach()

    def release(self, prefix: str) -> None:
        self._model.get_submodule(prefix).to("meta")


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to write: its name, its kind, and a function that computes it when it is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> TensorEntry:
        """Return the entry of a tensor that is in memory."""
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, entries: Sequence[TensorEntry], on_written: Callable[[int], None] = lambda size: None
) -> None:
    """Write a whole safetensors file or nothing. Memory holds one tensor at a time, unlike in the library's function.

    Args:
        path: of the file.
        entries: the tensors; numbers are aligned if entries with wider ones are first.
        on_written: called with the bytes of each tensor after it is written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size
        header[entry.name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.compute()
            assert (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
            on_written(entry.size)


@dataclass(frozen=True)
class OpenedModel:
    """A model of a supported family whose weights are not in memory yet."""

    config: Any
    weights: TensorSource
    generation_config: GenerationConfig | None


def check_complete(source: Source, missing: list[str]) -> None:
    """Raise ModelLoadError if weights that the config requires are missing from the files, or differ in shape."""
    if missing:
        raise ModelLoadError(
            f"model = {source.name!r}: its files lack {len(missing)} weights that the config requires, "
            f"{missing[0]} first; download the model again"
        )


def open_model(source: Source, config: Any) -> OpenedModel | None:
    """Open the files of a model of a supported family; None if they have another format.

    Raises:
        ModelLoadError: if weights are missing or have other shapes.
    """
    if source.gguf_file:
        return None
    if source.kind == "hub":
        patterns = ["model*.safetensors", INDEX_FILE, "generation_config.json"]
        folder = Path(snapshot_download(source.location, allow_patterns=patterns, local_files_only=source.local_only))
    else:
        folder = Path(source.location)
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return None
    weights = SafetensorsFolder(folder)
    shapes = weights.shapes()
    if config.tie_word_embeddings:
        shapes.setdefault(f"{HEAD}.weight", shapes.get(f"{EMBEDDING}.weight", ()))
    check_complete(source, sorted(name for name, shape in weight_shapes(config).items() if shapes.get(name) != shape))
    try:
        generation_config = from_pretrained(GenerationConfig, folder, local_files_only=True)
    except OSError:
        generation_config = None
    return OpenedModel(config, weights, generation_config)
