"""Device flags, and pinning of this process to CPU cores."""

from __future__ import annotations

import os

import pytest
import torch

from pdevis import devices
from pdevis.devices import (
    CoreSplit,
    DeviceSlot,
    MultiDevice,
    available_cores,
    check_device,
    find_device_slots,
    parse_devices,
    split_cores,
    use_all_cores,
    use_cores,
)
from pdevis.util.validation import ModelLoadError

CPU = torch.device("cpu")


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def gpus(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", i) for i in indices)


def refused(text: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        find_device_slots(text, "draft_device")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cuda:x", "cpu:7", "", "meta"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        check_device(name)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(name) in text
    assert "cpu" in text


def test_check_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device(None) == check_device("cpu") == CPU
    with pytest.raises(ModelLoadError, match="cuda"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device(None) == check_device("cuda") == torch.device("cuda:0")
    assert check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelLoadError, match="cuda:0, cuda:1"):
        check_device("cuda:2")


def test_cpu_is_all_cores_and_cpu_n_is_one():
    assert find_device_slots("cpu", "draft_device") == [DeviceSlot(CPU)]
    first = available_cores()[0]
    assert find_device_slots(f"cpu:{first}", "draft_device") == [DeviceSlot(CPU, first)]
    assert str(DeviceSlot(CPU, 3)) == "cpu:3"
    assert str(DeviceSlot(CPU)) == "cpu"


def test_a_list_of_devices(monkeypatch):
    monkeypatch.setattr(devices, "available_cores", lambda: [0, 1, 5])
    assert find_device_slots("cpu:0, cpu:5", "draft_device") == [DeviceSlot(CPU, 0), DeviceSlot(CPU, 5)]
    assert "must name each device once" in refused("cpu:0,cpu:0")
    assert "cpu:7 must be one of cpu:0, cpu:1, cpu:5" in refused("cpu:0,cpu:7")
    assert "several devices must be GPUs" in refused("cpu,cpu:1")


@pytest.mark.parametrize("text", ["", "cpu:", "cpu:x", "cpu:-1", "cuda:99", "gpu", "cpu:0,,cpu:1", "cpu:99999"])
def test_an_unknown_device_is_one_line_that_names_the_flag(text):
    assert refused(text).startswith(f"draft_device = {text!r}")


def test_overlap_on_one_cpu_gives_the_drafter_its_own_core(monkeypatch):
    all_cores = DeviceSlot(CPU)
    monkeypatch.setattr(devices, "available_cores", lambda: [0, 1, 2])
    assert split_cores(all_cores, [all_cores]) == CoreSplit([0, 1], [DeviceSlot(CPU, 2)])
    assert split_cores(DeviceSlot(CPU, 1), [DeviceSlot(CPU, 0)]) == CoreSplit(None, [DeviceSlot(CPU, 0)])
    monkeypatch.setattr(devices, "available_cores", lambda: [4])
    with pytest.raises(ModelLoadError, match="needs two devices or two cores"):
        split_cores(all_cores, [all_cores])


def test_a_targets_devices(three_gpus: None) -> None:
    assert parse_devices("cuda:1") == torch.device("cuda:1")
    assert parse_devices("cpu") == CPU
    assert parse_devices(None) == torch.device("cuda:0")
    assert parse_devices(" cuda:2, cuda:1 ") == MultiDevice(gpus(1, 2))
    assert parse_devices("cuda,cuda:1") == MultiDevice(gpus(0, 1))
    assert parse_devices("auto") == MultiDevice(gpus(0, 1, 2), auto=True)
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
def test_invalid_device_lists(three_gpus: None, text: str, words: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_devices(text, "draft_device")
    message = str(caught.value)
    assert f"draft_device = {text!r}: " in message
    assert words in message
    assert "\n" not in message


def test_a_targets_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_devices("auto") == parse_devices(None) == CPU
    with pytest.raises(ModelLoadError, match="must be one of cpu"):
        parse_devices("cuda:0,cuda:1")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads to cores")
def test_use_all_cores_restores_cores_and_threads():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    one = min(before)
    use_cores([one])
    try:
        assert os.sched_getaffinity(0) == {one}
        assert torch.get_num_threads() == 1
        assert available_cores() == sorted(before), "the cores that the process was given, not those that it uses now"
    finally:
        use_all_cores()
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads
