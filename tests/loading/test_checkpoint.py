"""Reading config, tokenizer and weights: folders, GGUF files, and one line for every failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from helpers.tiny_models import ALL
from pdevis.loading.checkpoint import (
    check_same_tokenizer,
    find_source,
    read_config,
    read_model,
    read_tokenizer,
    stop_ids,
)
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Copy a model's folder, so that a test may damage it."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelLoadError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(folder: Path) -> Any:
    return read_model(find_source(str(folder)), torch.float32, CPU)


@pytest.mark.parametrize("arch", ALL)
def test_reads_what_was_saved(arch: str, tiny_folder: Callable[..., Path], tiny_model: Callable[..., Any]) -> None:
    source = find_source(str(tiny_folder(arch)))
    model = read_model(source, torch.float32, CPU)
    assert not model.training
    assert read_config(source).model_type == arch
    original = tiny_model(arch, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    saved = original.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
    with torch.inference_mode():  # mapped weights are aligned differently, and some kernels then round differently
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-5, atol=1e-5)
    assert read_tokenizer(source).decode(read_tokenizer(source)("Zoë")["input_ids"]) == "Zoë"


def test_weights_have_the_requested_dtype(folder: Path) -> None:
    model = read_model(find_source(str(folder)), torch.bfloat16, CPU)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_folder_without_a_model(tmp_path: Path) -> None:
    assert "no config.json" in message(lambda: find_source(str(tmp_path)))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "2 GGUF files (a.gguf, b.gguf)" in message(lambda: find_source(str(tmp_path)))


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")
    assert "config" in message(lambda: read_config(find_source(str(folder))))
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    text = message(lambda: read_config(find_source(str(folder))))
    assert "not a causal language model" in text
    assert str(folder) in text


def test_model_that_is_not_a_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "not a causal language model" in message(lambda: load(folder))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "header"])
def test_broken_safetensors(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"x" * 100, "header": content[:4]}[damage])
    text = message(lambda: load(folder))
    assert "safetensors file is broken" in text
    assert str(folder) in text


def test_missing_weights_are_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6, "layer_types": None}))
    assert "lack" in message(lambda: load(folder))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message(lambda: load(folder))


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in message(lambda: read_tokenizer(find_source(str(folder))))


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in message(lambda: read_tokenizer(find_source(str(folder))))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"not a GGUF file" * 9])
def test_broken_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    source = find_source(str(tmp_path))
    assert source.gguf_file == "model.gguf"
    for read in (read_config, read_tokenizer, lambda source: read_model(source, torch.float32, CPU)):
        assert "model.gguf is broken" in message(lambda read=read: read(source))


def test_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 10 GiB\nand more")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit in memory" in message(lambda: load(folder))


def test_same_tokenizer(tiny_tokenizer: Callable[..., Any]) -> None:
    check_same_tokenizer(tiny_tokenizer(), tiny_tokenizer(chat_template=None))


def test_tokenizers_that_differ(tiny_tokenizer: Callable[..., Any]) -> None:
    target = tiny_tokenizer()
    more = tiny_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"))
    text = message(lambda: check_same_tokenizer(target, more))
    assert "259 and 260 entries" in text
    assert "id 259 is missing and '<think>'" in text
    swapped = tiny_tokenizer(("<|im_end|>", "<|endoftext|>", "<|im_start|>"))
    text = message(lambda: check_same_tokenizer(target, swapped))
    assert "id 256 is '<|endoftext|>' and '<|im_end|>'" in text


def test_tokenizers_with_equal_entries_that_encode_differently(tiny_tokenizer: Callable[..., Any]) -> None:
    from tokenizers import normalizers

    lower = tiny_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "probe text" in message(lambda: check_same_tokenizer(tiny_tokenizer(), lower))


def test_reserved_names_may_differ(tiny_tokenizer: Callable[..., Any]) -> None:
    old = tiny_tokenizer(("<|reserved_special_token_2|>", "<|end|>"))
    new = tiny_tokenizer(("<|eom_id|>", "<|end|>"))
    check_same_tokenizer(old, new)


def test_stop_ids() -> None:
    def holder(ids: Any) -> SimpleNamespace:
        return SimpleNamespace(eos_token_id=ids)

    assert stop_ids(holder([1, 2]), holder(3), holder(4)) == (1, 2)
    assert stop_ids(holder(0), holder(3), holder(4)) == (0,)
    assert stop_ids(holder(None), holder(3), holder(4)) == (3,)
    assert stop_ids(None, holder(None), holder(4)) == (4,)
    assert stop_ids(None, holder(None), holder(None)) == ()
