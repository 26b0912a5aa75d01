"""Models on several devices: the assignment of layers to devices, and reading such a model. Without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from helpers.tiny_models import ALL
from pdevis.devices import MultiDevice
from pdevis.loading import model_builder
from pdevis.loading.checkpoint import find_source, read_model
from pdevis.loading.model_builder import assign_layers, fewest_devices, read_multi_device_model
from pdevis.models.hf.hf_causal_lm import HFCausalLM
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")
IDS = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(0))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def gpus(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", i) for i in indices)


def make_meta_model(tiny_model: Callable[..., Any], arch: str, **options: Any) -> tuple[Any, int]:
    """A model of eight layers without weights, and its bytes."""
    model = tiny_model(arch, layers=8, dtype=torch.float32, **options).to("meta")
    model.tie_weights()
    return model, sum(weight.nbytes for weight in model.parameters())


def devices_of_layers(device_map: dict[str, Any], count: int = 8) -> list[Any]:
    """Return each decoder layer's device; fails if a layer is divided."""

    def device_of(name: str) -> Any:
        while name not in device_map:
            assert name, "a module without a device"
            name = name.rpartition(".")[0]
        return device_map[name]

    assert not any(name.count(".") > 2 for name in device_map)  # nothing below model.layers.N
    return [device_of(f"model.layers.{i}") for i in range(count)]


@pytest.mark.parametrize("arch", ALL)
def test_layers_are_divided_evenly_among_devices_and_stay_whole(tiny_model: Callable[..., Any], arch: str) -> None:
    model, size = make_meta_model(tiny_model, arch)
    device_map = assign_layers(model, {1: 2 * size, 3: 2 * size})
    devices = devices_of_layers(device_map)
    assert devices == sorted(devices)  # in order, so that a forward passes from one to the next once
    assert 2 <= devices.count(1) <= 6
    assert set(device_map.values()) == {1, 3}
    assert device_map["model.embed_tokens"] == 1


def test_unequal_devices_are_filled_one_after_another(tiny_model: Callable[..., Any]) -> None:
    """An even division would not fit on the last, small device."""
    model, size = make_meta_model(tiny_model, "qwen3")
    device_map = assign_layers(model, {0: size, 1: size // 4})
    assert set(device_map.values()) == {0, 1}
    assert devices_of_layers(device_map).count(0) >= 6


def test_a_model_that_does_not_fit_has_no_device_map(tiny_model: Callable[..., Any]) -> None:
    model, size = make_meta_model(tiny_model, "qwen3")
    assert assign_layers(model, {0: size // 3, 1: size // 3}) is None
    assert fewest_devices(model, {0: size // 4, "cpu": size // 4}) is None


def test_auto_uses_the_fewest_devices(tiny_model: Callable[..., Any]) -> None:
    model, size = make_meta_model(tiny_model, "llama")
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
    model = read_multi_device_model(source, torch.float32, MultiDevice((), auto=True))
    assert not model.training
    actual = HFCausalLM(model, "float32").forward(IDS)
    expected = HFCausalLM(read_model(source, torch.float32, CPU), "float32").forward(IDS)
    assert relative_error(actual, expected) <= 1e-5


def test_the_device_map_reaches_transformers(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: Any, dtype: torch.dtype, **placement: Any) -> Any:
        options.update(placement)

    options: dict[str, Any] = {}
    monkeypatch.setattr(model_builder, "_read_placed", read)
    monkeypatch.setattr(model_builder, "_bytes_for_weights", lambda gpu: {1: 300_000, 2: 2_000_000}[gpu.index])
    read_multi_device_model(find_source(str(tiny_folder("qwen3"))), torch.float32, MultiDevice(gpus(1, 2)))
    assert set(options["device_map"].values()) == {1, 2}


def test_a_model_that_does_not_fit_says_so(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_builder, "_bytes_for_weights", lambda gpu: 1000)
    with pytest.raises(ModelLoadError, match=r"do not fit on cuda:1,cuda:2, which can hold 0\.0 GiB") as caught:
        read_multi_device_model(find_source(str(tiny_folder("qwen3"))), torch.float32, MultiDevice(gpus(1, 2)))
    assert "\n" not in str(caught.value)


def test_missing_weights_are_an_error(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    del model.model.norm
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="lack 1 weights"):
        read_multi_device_model(find_source(str(tmp_path)), torch.float32, MultiDevice((), auto=True))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen3_next"])
@pytest.mark.parametrize("offloaded", [False, True])
def test_a_model_with_hooks_decodes_and_rewinds(tiny_model: Callable[..., Any], arch: str, offloaded: bool) -> None:
    """accelerate's hooks move hidden states and offloaded weights between devices, which are all the CPU here."""
    expected = tiny_model(arch)(IDS[None]).logits[0].detach()
    model = tiny_model(arch)
    if offloaded:
        embedding = model.get_input_embeddings()
        cpu_offload(model.model.layers, execution_device=CPU)
        assert embedding.weight.device == CPU
        assert all(weight.is_meta for weight in model.model.layers.parameters())
    else:
        device_map = dict.fromkeys(
            ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
        )
        dispatch_model(model, device_map, force_hooks=True, skip_keys=model._skip_keys_device_placement)
    lm = HFCausalLM(model, "float64")
    assert lm.device == CPU
    lm.prefill(IDS[:10])
    lm.forward(IDS[14:19])
    lm.rewind(11)
    lm.rewind(10)
    assert relative_error(lm.forward(IDS[10:]), expected[10:]) <= 1e-4
