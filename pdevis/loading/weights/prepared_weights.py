"""Prepared weights: the rotated 8-bit matrices of a model in a file, so that they are computed only once.

Rotating a model's weights in float64 takes most of the time of loading an 8-bit drafter. So the first load of a whole
model from safetensors files writes the results into `prepared` in the cache folder (PDEVIS_CACHE), and later loads map
that file from disk. Its name is a fingerprint of the model's files: if they change, it is not found. Nothing is kept of
models below `MIN_BYTES`; if the files exceed `MAX_BYTES` together, those not used for longest are deleted.

A file has one byte per weight and the token embedding in float32. Its content is bit for bit what was computed.

Shapes: H = hidden size, N = output size, K = input size of a product, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pdevis.loading.weights.families import head_size
from pdevis.loading.weights.safetensors_files import OpenedModel, TensorEntry, write_safetensors
from pdevis.models.layers import StackWeights
from pdevis.models.linear import DrafterInt8Linear, Int8Linear, Linear, quantized_from_integers
from pdevis.models.rotation import RotatedInputLinear
from pdevis.util.files import cache_root

FORMAT = 1  # increase it if rotation, quantisation, the order of rows or the names of the parts change
PREPARED_PRECISION = "int8"  # the one format that takes long to compute
MIN_BYTES = 16 << 20
MAX_BYTES = 8 << 30
SAMPLES, SAMPLE_BYTES = 16, 4096  # parts of each file whose content is in the fingerprint
EMBEDDING = "embedding"
LEFTOVER_SECONDS = 24 * 3600  # age from which an unfinished file counts as abandoned


class PreparedWeights:
    """The matrices in a prepared file, mapped from disk. Raises SafetensorError or OSError if it is broken."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with safe_open(file, framework="pt") as opened:
            self._names = set(opened.keys())

    def embedding(self) -> Tensor:
        """Return the rotated token embedding [V, H], mapped from disk: only the rows in use are read."""
        return self._read(EMBEDDING)[EMBEDDING]

    def linear(self, part: str, select: Callable[[Tensor], Tensor], *, drafter: bool) -> Linear:
        """Return a product.

        Args:
            part: its name, as `WeightReader` calls it.
            select: chooses rows of the weight [N, K], the scales [N] and the bias [N].
            drafter: with the faster product for one token.
        """
        tensors = {name: select(tensor) for name, tensor in self._read(part).items()}
        weight = quantized_from_integers(tensors[f"{part}.weight"], tensors[f"{part}.scales"].contiguous())
        bias = tensors.get(f"{part}.bias")
        return (DrafterInt8Linear if drafter else Int8Linear)(weight, None if bias is None else bias.clone())

    def _read(self, part: str) -> dict[str, Tensor]:
        # The file is opened again for each part: what was read from it counts as used memory until it is closed.
        names = self._names & {part, f"{part}.weight", f"{part}.scales", f"{part}.bias"}
        with safe_open(self.file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}


def find_prepared(model: OpenedModel) -> PreparedWeights | None:
    """Return the prepared weights of a model; None if there are none, or their file is broken."""
    try:
        file = _prepared_file(model)
        prepared = PreparedWeights(file)
    except OSError:
        return None
    except SafetensorError:
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    with contextlib.suppress(OSError):  # the folder may be read-only
        os.utime(file)  # its last use
    return prepared


def save_prepared(model: OpenedModel, weights: StackWeights) -> Path | None:
    """Keep the weights that were computed for a whole model in int8. Returns the file.

    Returns None, and keeps nothing, if the model is too small or too large, or the cache folder has no space.
    """
    with contextlib.suppress(OSError):
        file = _prepared_file(model)
        entries = list(_entries(weights))
        size = sum(entry.size for entry in entries)
        if not MIN_BYTES <= size <= MAX_BYTES:
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_space(file.parent, size)
        if shutil.disk_usage(file.parent).free < 2 * size:
            return None
        write_safetensors(file, entries)
        return file
    return None


def _prepared_file(model: OpenedModel) -> Path:
    return cache_root() / "prepared" / f"{fingerprint(model)}.safetensors"


def fingerprint(model: OpenedModel) -> str:
    """Return a hash of everything that the prepared weights depend on: files, sizes of heads, and `FORMAT`."""
    config = model.config
    settings: list[Any] = [FORMAT, config.model_type, config.num_attention_heads, config.num_key_value_heads]
    digest = hashlib.sha256(json.dumps([*settings, head_size(config)]).encode())
    for path in model.weights.files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:  # an image of a system may give all files the same time
            last = max(0, status.st_size - SAMPLE_BYTES)
            for i in range(SAMPLES):
                file.seek(i * last // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _entries(weights: StackWeights) -> Iterator[TensorEntry]:
    """Yield the tensors of a file, those with wider numbers first: so all are aligned."""
    products = _products(weights)
    shapes = {}
    for part, linear in products.items():
        matrix = linear.quantised
        shapes[part] = tuple(matrix.shape)
        yield TensorEntry.of(f"{part}.scales", matrix.q_per_channel_scales())
    yield TensorEntry.of(EMBEDDING, weights.embedding)
    for part, linear in products.items():
        if linear.bias is not None:
            yield TensorEntry.of(f"{part}.bias", linear.bias)
    for part, linear in products.items():
        # unpacked a second time when it is written, so that memory holds one matrix at a time
        yield TensorEntry(f"{part}.weight", torch.int8, shapes[part], lambda linear=linear: linear.quantised.int_repr())


def _products(weights: StackWeights) -> dict[str, Int8Linear]:
    """Return all products of a whole model, by the names that `WeightReader` gives them."""
    products: dict[str, Linear] = {"head": weights.head}
    for number, layer in enumerate(weights.layers):
        products[f"{number}.qkv"], products[f"{number}.output"] = layer.attention.qkv, layer.attention.output
        products[f"{number}.gate_up"], products[f"{number}.down"] = layer.mlp.gate_up, layer.mlp.down
    return {part: _without_rotation(linear) for part, linear in products.items()}


def _without_rotation(linear: Linear) -> Int8Linear:
    inner = linear.linear if isinstance(linear, RotatedInputLinear) else linear
    assert isinstance(inner, Int8Linear), "only int8 weights are prepared"
    return inner


def _make_space(folder: Path, size: int) -> None:
    """Delete files that were not used for longest until one of `size` bytes fits within `MAX_BYTES`.

    Files that a killed process has left unfinished are deleted too.
    """
    for unfinished in folder.glob(".*.tmp"):
        if time.time() - unfinished.stat().st_mtime > LEFTOVER_SECONDS:
            unfinished.unlink()
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total + size <= MAX_BYTES:
            return
        total -= file.stat().st_size
        file.unlink()
