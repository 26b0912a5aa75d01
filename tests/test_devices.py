"""Where models run: what the device flags mean, and what pinning does to this process."""

from __future__ import annotations

import os

import pytest
import torch

from pdevis import devices as places
from pdevis.devices import DeviceSlot, cores, find_device_slots, split_cores, use_all_cores, use_cores
from pdevis.loading.catalog import ModelLoadError

CPU = torch.device("cpu")


def refused(text: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        find_device_slots(text, "draft_device")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cpu_is_all_cores_and_cpu_i_is_one():
    assert find_device_slots("cpu", "draft_device") == [DeviceSlot(CPU)]
    first = cores()[0]
    assert find_device_slots(f"cpu:{first}", "draft_device") == [DeviceSlot(CPU, first)]
    assert str(DeviceSlot(CPU, 3)) == "cpu:3"
    assert str(DeviceSlot(CPU)) == "cpu"


def test_a_list_names_several(monkeypatch):
    monkeypatch.setattr(places, "cores", lambda: [0, 1, 5])
    assert find_device_slots("cpu:0, cpu:5", "draft_device") == [DeviceSlot(CPU, 0), DeviceSlot(CPU, 5)]
    assert "must name each device once" in refused("cpu:0,cpu:0")
    assert "cpu:7 must be one of cpu:0, cpu:1, cpu:5" in refused("cpu:0,cpu:7")
    assert "several devices must be GPUs" in refused("cpu,cpu:1")


@pytest.mark.parametrize("text", ["", "cpu:", "cpu:x", "cpu:-1", "cuda:99", "gpu", "cpu:0,,cpu:1", "cpu:99999"])
def test_what_is_not_there_is_one_line_that_names_the_flag(text):
    assert refused(text).startswith(f"draft_device = {text!r}")


def test_overlap_on_one_machine_gives_the_drafter_a_core_of_its_own(monkeypatch):
    whole = DeviceSlot(CPU)
    monkeypatch.setattr(places, "cores", lambda: [0, 1, 2])
    assert split_cores(whole, [whole]) == ([0, 1], [DeviceSlot(CPU, 2)])
    assert split_cores(DeviceSlot(CPU, 1), [DeviceSlot(CPU, 0)]) == (None, [DeviceSlot(CPU, 0)])
    monkeypatch.setattr(places, "cores", lambda: [4])
    with pytest.raises(ModelLoadError, match="needs two devices or two cores"):
        split_cores(whole, [whole])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads to cores")
def test_cores_are_given_back():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    one = min(before)
    use_cores([one])
    try:
        assert os.sched_getaffinity(0) == {one}
        assert torch.get_num_threads() == 1
        assert cores() == sorted(before), "what the process was given, not what it uses now"
    finally:
        use_all_cores()
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads
