"""Corrections: linear maps, fitted on calibration text, that make up for part of what a schedule changes.

A lane of a wide layer reads an earlier hidden state than in the exact drafter. Its correction maps the normed state
that it reads to an estimate of the one that it should have read, and is folded into the matrix that reads it. The
correction of dropped layers maps the update of the MLP before them to an estimate of what they would have made of it,
and is folded into the matrix that writes it. So corrections cost nothing per token.

The maps come from `python -m pdevis.calibrate` (fit_corrections.py), which keeps them in a safetensors file.

Shapes: H = hidden size, R = rank, N = output size, K = input size of a product.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pdevis.models.layers import StackWeights
from pdevis.util.files import expand_user, parse_json, write_atomic

FORMAT, VERSION = "pdevis corrections", "1"
SAMPLED_ROWS = 64  # of the embedding, in a fingerprint


@dataclass(frozen=True)
class LinearMap:
    """x -> x + (x U) V for rows x [H]: U [H, R], V [R, H]. A full map has U = 1 and R = H."""

    u: Tensor | None
    v: Tensor

    def fold_into_reader(self, weight: Tensor) -> Tensor:
        """Return the matrix [N, H] that gives for x what `weight` gives for the mapped x."""
        product = weight @ self.v.to(weight).t()
        return weight + (product if self.u is None else product @ self.u.to(weight).t())

    def fold_into_writer(self, weight: Tensor) -> Tensor:
        """Return the matrix [H, K] whose results are the mapped results of `weight`. Also for a bias [H]."""
        mapped = weight.t() if self.u is None else weight.t() @ self.u.to(weight)
        return weight + (mapped @ self.v.to(weight)).t()


@dataclass(frozen=True)
class Corrections:
    """The maps of one schedule of one drafter.

    Args:
        model: `weights_fingerprint` of the drafter.
        schedule: its text.
        maps: by sublayer and layer: "attention.5" and "mlp.5" for what lanes read, "write.5" for the update of MLP 5.
        provenance: how they were fitted: text, tokens, λ, rank, versions.
        file: name of the file that they were read from, for messages.
    """

    model: str
    schedule: str
    maps: Mapping[str, LinearMap]
    provenance: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def check_model(self, weights: StackWeights) -> None:
        """Raise ValueError unless the maps were fitted for these weights."""
        if self.maps and self.model != weights_fingerprint(weights):
            raise ValueError(
                f"corrections = {self.file!r}: were fitted for another drafter or weight format; "
                "python -m pdevis.calibrate fits new ones"
            )

    def get(self, kind: str, layer: int) -> LinearMap | None:
        return self.maps.get(f"{kind}.{layer}")


NO_CORRECTIONS = Corrections("", "", {})


def weights_fingerprint(weights: StackWeights) -> str:
    """Return a hash that tells drafters, weight formats and bases of the residual stream apart."""
    count = len(weights.embedding)
    rows = weights.embedding[torch.arange(0, count, max(1, count // SAMPLED_ROWS), device=weights.device)]
    facts = [weights.family, weights.precision, len(weights.layers), *weights.embedding.shape, weights.heads]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(rows.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_corrections(path: str | PathLike[str], corrections: Corrections) -> None:
    """Write a corrections file, atomically. Maps are stored in bfloat16."""
    tensors = {}
    for name, linear_map in corrections.maps.items():
        tensors[f"{name}.v"] = linear_map.v.bfloat16().contiguous()
        if linear_map.u is not None:
            tensors[f"{name}.u"] = linear_map.u.bfloat16().contiguous()
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": corrections.model,
        "schedule": corrections.schedule,
        "provenance": json.dumps(dict(corrections.provenance)),
    }
    write_atomic(Path(path), save(tensors, metadata=metadata))


def load_corrections(path: str | PathLike[str]) -> Corrections:
    """Read a corrections file; the last few that were read are kept in memory.

    Raises:
        ValueError: it is missing, broken or of another version.
    """
    file = expand_user(path)
    if not file.is_file():
        raise ValueError(f"corrections = {str(file)!r}: {'is a folder' if file.is_dir() else 'does not exist'}")
    status = file.stat()
    return _read(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(file: Path, changed_ns: int, size: int) -> Corrections:
    """Read a file in the state that time and size tell apart."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"corrections = {str(file)!r}: is not a corrections file, or broken: {error}") from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(f"corrections = {str(file)!r}: is not a corrections file of version {VERSION}")
    try:
        names = sorted(name.removesuffix(".v") for name in tensors if name.endswith(".v"))
        maps = {name: LinearMap(tensors.get(f"{name}.u"), tensors[f"{name}.v"]) for name in names}
        provenance = parse_json(metadata["provenance"])
        return Corrections(metadata["model"], metadata["schedule"], maps, provenance, str(file))
    except (KeyError, ValueError) as error:
        raise ValueError(f"corrections = {str(file)!r}: broken: {error}") from None
