"""Reading weights tensor by tensor, and writing files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny_models import DENSE
from pdevis import DecodeConfig, load_pair
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.loading.weights.families import FAMILIES, FamilySpec
from pdevis.loading.weights.safetensors_files import TensorEntry, open_model, write_safetensors
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.stack import DecoderStack
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("pieces", [1, 3])
def test_weights_on_disk_equal_those_in_memory(
    arch: str, pieces: int, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """One file and several, against the model in memory; llama's embedding is tied to its head."""
    model = tiny_model(arch, dtype=torch.float32)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=size // pieces + 1)
    assert (tmp_path / "model.safetensors.index.json").exists() == (pieces > 1)
    source = find_source(str(tmp_path))
    opened = open_model(source, read_config(source))
    assert len(opened.weights.files) == len(list(tmp_path.glob("*.safetensors")))
    ids = torch.tensor([5, 9, 200, 31, 7])
    for _ in range(2):  # a second pass must read everything again
        logits = DecoderStack(read_weights(opened, "float32", CPU)).forward(ids)
        expected = DecoderStack(read_weights(model, "float32", CPU)).forward(ids)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(value, torch.Tensor) for value in vars(opened.weights).values())


def test_other_file_formats_are_not_opened(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    source = find_source(str(tmp_path))
    assert open_model(source, read_config(source)) is None


def test_a_weight_of_another_shape_counts_as_missing(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model("qwen2", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(3)
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    source = find_source(str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"lack 2 weights .* model\.layers\.1\.self_attn\.q_proj\.bias first"):
        open_model(source, read_config(source))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.post_feedforward_layernorm.weight",
        "lm_head.bias",
    ],
)
def test_a_weight_that_no_part_reads_is_refused(name: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    save_file(load_file(folder / "model.safetensors") | {name: torch.zeros(64)}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=rf"pdevis's forward pass does not use, {name} first of 1;"):
        load_pair(str(folder), device="cpu")


def test_a_spec_that_leaves_weights_out_is_refused(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in memory, as from files of other formats."""
    model = tiny_model("qwen2", layers=2)
    monkeypatch.setitem(FAMILIES, "qwen2", FamilySpec(qkv_bias=False, output_bias=False))
    with pytest.raises(
        ModelLoadError, match=r"model = 'qwen2': has weights .* model\.layers\.0\.self_attn\.k_proj\.bias first of 6"
    ):
        read_weights(model, "float64", CPU)


def test_tensors_outside_the_decoder_are_ignored(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("llama", layers=2), tmp_path / "model"))
    outside = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.2.mlp.down_proj.weight", "score.weight"]
    tensors = {name: torch.zeros(64) for name in outside}
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")
    assert load_pair(str(folder), device="cpu").generate("Hi", DecodeConfig(max_new_tokens=2, eos_ids=())).ids


def test_a_written_file_is_that_of_the_library(tmp_path: Path) -> None:
    """Byte for byte, if the entries are in the library's order: wide numbers first, then by name."""
    tensors = {
        "b.scales": torch.rand(5, dtype=torch.float64),
        "a": torch.randn(3, 4),
        "c": torch.randn(1),
        "a.weight": torch.arange(15, dtype=torch.int8).view(5, 3),
    }
    written: list[int] = []
    entries = [TensorEntry.of(name, tensor) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "ours", entries, on_written=written.append)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert written == [40, 48, 4, 15]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("earlier")
    entries = [TensorEntry.of("a", torch.zeros(4)), TensorEntry("b", torch.float32, (2,), fail)]
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "file", entries)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "earlier"
