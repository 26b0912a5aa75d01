"""Prepared weights: the bits of weights that are computed anew, found only for the files that they were made from."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import DENSE
from pdevis import DecodeConfig, load_pair
from pdevis.loading import model_builder
from pdevis.loading.checkpoint import find_source, read_config
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.loading.weights import prepared_weights
from pdevis.loading.weights.prepared_weights import find_prepared, save_prepared
from pdevis.loading.weights.safetensors_files import OpenedModel, open_model
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.layers import WHOLE, ShardSpec, StackWeights
from pdevis.models.linear import Int8Linear, has_int8
from pdevis.models.rotation import RotatedInputLinear
from pdevis.models.stack import DecoderStack

pytestmark = pytest.mark.skipif(not has_int8(), reason="torch without fbgemm")
CPU = torch.device("cpu")
IDS = torch.tensor([5, 9, 200, 31, 7, 77])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which weights of tiny models are kept too."""
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepared_weights, "MIN_BYTES", 0)
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a model, so that a test may change it."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def opened(folder: Path) -> OpenedModel:
    source = find_source(str(folder))
    return open_model(source, read_config(source))


def load(folder: Path, shard: ShardSpec = WHOLE, **changes: Any) -> DecoderStack:
    source = find_source(str(folder))
    settings = {"source": source, "config": read_config(source), "device": CPU, "precision": "int8"} | changes
    return build_model(LoadSpec("tiny", "drafter", **settings), shard)


def tensors(weights: StackWeights) -> list[torch.Tensor]:
    """Every tensor of a stack, in a fixed order."""
    found = [weights.embedding, weights.frequencies]
    linears = [weights.head]
    for layer in weights.layers:
        if layer.attention:
            linears += [layer.attention.qkv, layer.attention.output]
            found += [layer.attention.qk_norm.weight] if layer.attention.qk_norm else []
        if layer.mlp:
            linears += [layer.mlp.gate_up, layer.mlp.down]
    for linear in linears:
        inner = linear.linear if isinstance(linear, RotatedInputLinear) else linear
        found += [inner.quantised.int_repr(), inner.quantised.q_per_channel_scales()]
        found += [] if inner.bias is None else [inner.bias]
    return found


def assert_same_bits(found: StackWeights, expected: StackWeights) -> None:
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
    names = ("precision", "heads", "kv_heads", "head_dim", "mlp_size", "mlp_block", "head_start", "vocab_size")
    assert all(getattr(found, name) == getattr(expected, name) for name in names)


@pytest.mark.parametrize("arch", DENSE)
@pytest.mark.parametrize("drafter", [True, False])
def test_bits_are_those_of_weights_computed_anew(
    cache: Path, tiny_folder: Callable[..., Path], arch: str, drafter: bool
) -> None:
    model = opened(tiny_folder(arch))
    expected = read_weights(model, "int8", CPU, drafter=drafter)
    assert find_prepared(model) is None
    file = save_prepared(model, expected)
    assert file.parent == cache
    prepared = find_prepared(model)
    found = read_weights(model, "int8", CPU, drafter=drafter, prepared=prepared)
    assert_same_bits(found, expected)
    assert type(found.head) is type(expected.head)
    for tokens in (1, 6):
        assert torch.equal(DecoderStack(found).forward(IDS[:tokens]), DecoderStack(expected).forward(IDS[:tokens]))


@pytest.mark.parametrize("shard", [ShardSpec(0, 2), ShardSpec(1, 2, split_mlps=True)])
def test_shards_and_smaller_heads_are_parts_of_the_whole(cache: Path, folder: Path, shard: ShardSpec) -> None:
    model = opened(folder)
    save_prepared(model, read_weights(model, "int8", CPU))
    options: dict[str, Any] = {"head_rows": 100, "shard": shard, "drafter": True}
    expected = read_weights(model, "int8", CPU, **options)
    assert_same_bits(read_weights(model, "int8", CPU, **options, prepared=find_prepared(model)), expected)


def test_the_first_load_prepares_and_later_loads_compute_nothing(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, ShardSpec(0, 2))
    load(folder, head_rows=100)
    load(folder, precision="float32")
    assert not cache.exists()  # neither a part of the model nor another format is kept
    first = load(folder)
    (file,) = cache.iterdir()
    monkeypatch.setattr(model_builder, "save_prepared", lambda *args: pytest.fail("computed again"))
    assert_same_bits(load(folder).weights, first.weights)
    assert load(folder, head_rows=100).weights.head.out_features == 100
    assert [file] == list(cache.iterdir())


@pytest.mark.parametrize("change", ["content", "time", "heads"])
def test_other_files_are_not_found(cache: Path, folder: Path, change: str) -> None:
    model = opened(folder)
    save_prepared(model, read_weights(model, "int8", CPU))
    assert find_prepared(model)
    file = folder / "model.safetensors"
    status = file.stat()
    if change == "content":
        content = bytearray(file.read_bytes())
        content[-4:] = b"abcd"
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(file)
    else:
        model.config.num_attention_heads, model.config.head_dim = 2, 32
    assert find_prepared(model) is None


@pytest.mark.parametrize("damage", [b"", b"x" * 1000, None])
def test_a_broken_file_is_computed_and_written_again(cache: Path, folder: Path, damage: bytes | None) -> None:
    first = load(folder)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert_same_bits(load(folder).weights, first.weights)
    assert file.read_bytes() == content


def test_small_models_and_those_beyond_the_limit_are_not_kept(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, value in (("MAX_BYTES", 1000), ("MIN_BYTES", 1 << 30)):
        with monkeypatch.context() as patch:
            patch.setattr(prepared_weights, limit, value)
            load(folder)
    assert not cache.exists()


def test_files_not_used_for_longest_make_space(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    (file,) = cache.iterdir()
    size = file.stat().st_size
    for age, name in ((300, "old"), (100, "newer")):
        shutil.copyfile(file, cache / f"{name}.safetensors")
        os.utime(cache / f"{name}.safetensors", (file.stat().st_mtime - age,) * 2)
    os.utime(file, (file.stat().st_mtime - 200,) * 2)
    load(folder)  # its use makes it the newest
    monkeypatch.setattr(prepared_weights, "MAX_BYTES", 2 * size + 100)
    os.utime(folder / "model.safetensors")
    load(folder)
    assert len(list(cache.iterdir())) == 2
    assert file in cache.iterdir()


def test_unfinished_files_of_killed_processes_are_deleted(cache: Path, folder: Path) -> None:
    cache.mkdir(parents=True)
    for name, age in ((".a.safetensors.7.tmp", 2 * prepared_weights.LEFTOVER_SECONDS), (".b.safetensors.8.tmp", 0)):
        (cache / name).write_text("half")
        os.utime(cache / name, (time.time() - age,) * 2)
    load(folder)
    assert [path.name for path in cache.iterdir() if path.suffix == ".tmp"] == [".b.safetensors.8.tmp"]


def test_a_cache_that_cannot_be_written_costs_time_only(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "file" / "cache"))
    assert isinstance(load(folder).weights.head, Int8Linear)


def test_a_pair_writes_the_same_tokens_with_prepared_weights(cache: Path, folder: Path) -> None:
    answers = []
    for _ in range(2):
        pair = load_pair(str(folder), device="cpu")
        generation = pair.generate("Zoë?", DecodeConfig(max_new_tokens=24))
        answers.append((generation.ids, generation.stats.accepted))
    assert answers[0] == answers[1]
    assert len(list(cache.iterdir())) == 1
