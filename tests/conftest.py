"""Fixtures of the whole suite: tiny random models (helpers/tiny_models.py) and the embedded model. No network."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from helpers.tiny_models import ARCHITECTURES, OPENING_TEMPLATE, make_model, make_tokenizer, save_thinking_model
from pdevis.loading.embedded import prepare
from pdevis.util.validation import ModelLoadError

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels run on CPU


@pytest.fixture(scope="session")
def architectures() -> tuple[str, ...]:
    return tuple(ARCHITECTURES)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """tiny_tokenizer(special=…, chat_template=…): a byte-level tokenizer of 256 bytes and the special tokens."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """tiny_model(arch="llama", seed=0, layers=4, dtype=torch.float64, **config): a new transformers model each time."""
    return make_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_folder(arch="llama", seed=0, layers=4, dtype=torch.float32, **config): a saved tiny model with tokenizer.

    The same arguments give the same folder: copy it before you change anything in it.
    """
    made: dict[str, Path] = {}

    def folder(arch: str = "llama", seed: int = 0, layers: int = 4, dtype: torch.dtype = torch.float32, **changes: Any):
        key = repr((arch, seed, layers, dtype, sorted(changes.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"tiny-{arch}")
            make_model(arch, seed, layers, dtype, **changes).save_pretrained(made[key])
            make_tokenizer().save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def thinking_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks as Qwen3 does (`save_thinking_model`)."""
    return save_thinking_model(tmp_path_factory.mktemp("tiny-thinking"))


@pytest.fixture(scope="session")
def opening_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a template that opens the thought in the prompt, as that of DeepSeek-R1 does."""
    return save_thinking_model(tmp_path_factory.mktemp("tiny-opening"), OPENING_TEMPLATE)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """The embedded model, fetched and converted if this machine has not got it yet."""
    try:
        return prepare()
    except ModelLoadError as error:
        pytest.skip(f"needs the embedded model: {error}")


@pytest.fixture
def folders(tiny_folder: Callable[..., Path], tiny_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """folders(family): a target of 5 layers, and a drafter that is often right: the target with some noise."""

    def make_folders(family: str) -> tuple[str, str]:
        target = tiny_folder(family, layers=5)
        noisy = tiny_model(family, layers=5, dtype=torch.float32)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in noisy.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=random)
        shutil.copytree(target, tmp_path / "noisy")
        noisy.save_pretrained(tmp_path / "noisy")
        return str(target), str(tmp_path / "noisy")

    return make_folders


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that the system does not know, and no environment variable that names a home folder."""

    def unknown(key: object) -> None:
        raise KeyError(f"getpwuid(): uid not found: {key}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "PDEVIS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    """Tests read and write models with transformers: its bars would fill the captured output."""
    logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, also if the suite runs in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
