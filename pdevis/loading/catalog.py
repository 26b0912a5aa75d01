"""Model names: the catalog of keys and their hub ids, and the resolution of any other name.

A name is a catalog key, a hub id ("owner/name"), a local folder, or a .gguf file. Nothing is opened or downloaded here.

    python -c "from pdevis.loading.catalog import resolve; print(resolve('qwen-8b'))"
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_ALLOWED = "(a hub id, owner/name, or a local folder is allowed too)"


@dataclass(frozen=True)
class Source:
    """The origin of a model's files.

    Args:
        name: as the user gave it.
        kind: `hub`, `folder`, or `embedded` (downloaded from the package index).
        location: hub id or folder; for `embedded` the hub id of the same model.
        gguf_file: name of the folder's GGUF file that holds the model; None: safetensors and config.json.
        local_only: read files on disk only, without asking a server.
    """

    name: str
    kind: Literal["hub", "folder", "embedded"]
    location: str
    gguf_file: str | None = None
    local_only: bool = False


def resolve(name: str | os.PathLike[str]) -> Source:
    """Return the source of a model name. A key has priority over a folder of that name ("./name" is the folder).

    Raises:
        ModelLoadError: if a key is not in the catalog (naming the nearest ones), or a path does not exist.
    """
    text = os.fspath(name)
    if not text.strip():
        raise ModelLoadError(f"model = {text!r}: must be one of {', '.join(CATALOG)} {_ALLOWED}")
    if text in CATALOG:
        return Source(text, "embedded" if text == EMBEDDED else "hub", CATALOG[text])
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
