"""Models over several devices: what a flag's list means, which layer goes where, reading a model so. Without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from pdevis.loading import device_map as spread
from pdevis.loading.catalog import ModelLoadError
from pdevis.loading.checkpoint import find_source, read_model
from pdevis.loading.device_map import Spread, fewest_devices, parse_devices, place_layers, read_spread_model
from pdevis.models.hf import HFCausalLM

CPU = torch.device("cpu")
ALL = ("llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next")
IDS = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def gpus(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", i) for i in indices)


def outline(tiny_model: Callable[..., Any], arch: str, **options: Any) -> tuple[Any, int]:
    """A model of eight layers without weights, and its bytes."""
    model = tiny_model(arch, layers=8, dtype=torch.float32, **options).to("meta")
    model.tie_weights()
    return model, sum(weight.nbytes for weight in model.parameters())


def layers_of(placed: dict[str, Any], count: int = 8) -> list[Any]:
    """Each decoder layer's place; fails where a layer is in more than one."""

    def place(name: str) -> Any:
        while name not in placed:
            assert name, "a module without a place"
            name = name.rpartition(".")[0]
        return placed[name]

    assert not any(name.count(".") > 2 for name in placed)  # nothing below model.layers.N
    return [place(f"model.layers.{i}") for i in range(count)]


def test_devices(three_gpus: None) -> None:
    assert parse_devices("cuda:1") == torch.device("cuda:1")
    assert parse_devices("cpu") == CPU
    assert parse_devices(None) == torch.device("cuda:0")
    assert parse_devices(" cuda:2, cuda:1 ") == Spread(gpus(1, 2))
    assert parse_devices("cuda,cuda:1") == Spread(gpus(0, 1))
    assert parse_devices("auto") == Spread(gpus(0, 1, 2), auto=True)
    assert str(parse_devices("cuda:2,cuda:0")) == "cuda:0,cuda:2"
    assert str(parse_devices("auto")) == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuda:0,cuda:3", "cuda:0, cuda:1, cuda:2"),
        ("cuda:0,gpu", "'gpu': must be one of"),
        ("cuda:1,cuda:1", "once"),
        ("cuda,cuda:0", "once"),
        ("cpu,cuda:0", "GPUs only"),
        ("cuda:0,cpu:1", "GPUs only"),
        ("auto,cuda:0", "GPUs only"),
        ("cuda:0,", "GPUs only"),
        (",", "GPUs only"),
    ],
)
def test_lists_that_make_no_sense(three_gpus: None, text: str, words: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_devices(text, "draft_device")
    message = str(caught.value)
    assert f"draft_device = {text!r}: " in message
    assert words in message
    assert "\n" not in message


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_devices("auto") == parse_devices(None) == CPU
    with pytest.raises(ModelLoadError, match="must be one of cpu"):
        parse_devices("cuda:0,cuda:1")


@pytest.mark.parametrize("arch", ALL)
def test_layers_are_spread_evenly_and_not_divided(tiny_model: Callable[..., Any], arch: str) -> None:
    model, size = outline(tiny_model, arch)
    placed = place_layers(model, {1: 2 * size, 3: 2 * size})
    places = layers_of(placed)
    assert places == sorted(places)  # in order, so that a forward passes from one to the next once
    assert 2 <= places.count(1) <= 6
    assert set(placed.values()) == {1, 3}
    assert placed["model.embed_tokens"] == 1


def test_unequal_devices_are_filled_one_after_the_other(tiny_model: Callable[..., Any]) -> None:
    """An even division would leave the last, small one with too much."""
    model, size = outline(tiny_model, "qwen3")
    placed = place_layers(model, {0: size, 1: size // 4})
    assert set(placed.values()) == {0, 1}
    assert layers_of(placed).count(0) >= 6


def test_what_does_not_fit_has_no_places(tiny_model: Callable[..., Any]) -> None:
    model, size = outline(tiny_model, "qwen3")
    assert place_layers(model, {0: size // 3, 1: size // 3}) is None
    assert fewest_devices(model, {0: size // 4, "cpu": size // 4}) is None


def test_auto_takes_the_fewest_devices(tiny_model: Callable[..., Any]) -> None:
    model, size = outline(tiny_model, "llama")
    assert fewest_devices(model, {0: size // 2, 1: 2 * size, 2: 2 * size, "cpu": size}) == {"": 1}
    two = fewest_devices(model, {0: size // 4, 1: size * 3 // 4, 2: size * 3 // 4, "cpu": size})
    assert set(two.values()) == {1, 2}
    with_cpu = fewest_devices(model, {0: size // 2, "cpu": 2 * size})
    assert set(with_cpu.values()) == {0, "cpu"}
    assert with_cpu["model.embed_tokens"] == 0
    assert fewest_devices(model, {"cpu": 2 * size}) == {"": "cpu"}


@pytest.mark.parametrize("arch", ["llama", "qwen3_next"])
def test_auto_on_the_cpu_alone_reads_the_plain_model(tiny_folder: Callable[..., Path], arch: str) -> None:
    source = find_source(str(tiny_folder(arch)))
    model = read_spread_model(source, torch.float32, Spread((), auto=True))
    assert not model.training
    found = HFCausalLM(model, "float32").forward(IDS)
    wanted = HFCausalLM(read_model(source, torch.float32, CPU), "float32").forward(IDS)
    assert relative(found, wanted) <= 1e-5


def test_the_map_reaches_the_library(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: Any, dtype: torch.dtype, **placement: Any) -> Any:
        asked.update(placement)

    asked: dict[str, Any] = {}
    monkeypatch.setattr(spread, "_read", read)
    monkeypatch.setattr(spread, "_free_bytes", lambda gpu: {1: 300_000, 2: 2_000_000}[gpu.index])
    read_spread_model(find_source(str(tiny_folder("qwen3"))), torch.float32, Spread(gpus(1, 2)))
    assert set(asked["device_map"].values()) == {1, 2}


def test_a_model_that_does_not_fit_says_so(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_free_bytes", lambda gpu: 1000)
    with pytest.raises(ModelLoadError, match=r"do not fit on cuda:1,cuda:2, which can take 0\.0 GiB") as caught:
        read_spread_model(find_source(str(tiny_folder("qwen3"))), torch.float32, Spread(gpus(1, 2)))
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    del model.model.norm
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="lack 1 weights"):
        read_spread_model(find_source(str(tmp_path)), torch.float32, Spread((), auto=True))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen3_next"])
@pytest.mark.parametrize("offloaded", [False, True])
def test_a_model_with_hooks_decodes_and_rewinds(tiny_model: Callable[..., Any], arch: str, offloaded: bool) -> None:
    """The hooks that move hidden states between devices, and weights from where they lie, here all on the CPU."""
    wanted = tiny_model(arch)(IDS[None]).logits[0].detach()
    model = tiny_model(arch)
    if offloaded:
        embedding = model.get_input_embeddings()
        cpu_offload(model.model.layers, execution_device=CPU)
        assert embedding.weight.device == CPU
        assert all(weight.is_meta for weight in model.model.layers.parameters())
    else:
        places = dict.fromkeys(
            ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
        )
        dispatch_model(model, places, force_hooks=True, skip_keys=model._skip_keys_device_placement)
    lm = HFCausalLM(model, "float64")
    assert lm.device == CPU
    lm.prefill(IDS[:10])
    lm.forward(IDS[14:19])
    lm.rewind(11)
    lm.rewind(10)
    assert relative(lm.forward(IDS[10:]), wanted[10:]) <= 1e-4
