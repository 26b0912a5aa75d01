"""The devices of a machine: parsing of `--target_device` and `--draft_device`, and pinning to CPU cores.

`cpu` is all cores together, as torch uses them. `cpu:2` is one core: a process that runs there is pinned to it, with
one thread. Several devices are a list, `cuda:0,cuda:1` or `cpu:0,cpu:1`; a target may also run on `auto`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pdevis.config import AUTO
from pdevis.util.validation import ModelLoadError


@dataclass(frozen=True)
class DeviceSlot:
    """A device that a model or a process runs on.

    Args:
        device: a GPU or the CPU.
        core: the one CPU core to use; None: no particular core.
    """

    device: torch.device
    core: int | None = None

    def __str__(self) -> str:
        return str(self.device) if self.core is None else f"cpu:{self.core}"

    def activate(self) -> None:
        """Make this process use the slot: pin it to the core with one thread, or make the GPU the current one."""
        if self.core is not None:
            use_cores([self.core])
        elif self.device.type == "cuda":
            torch.cuda.set_device(self.device)


# ---- CPU cores of this process ----


@dataclass
class _InitialAffinity:
    """Cores and threads of this process before `use_cores`; `cores` is None while it is not restricted."""

    cores: list[int] | None = None
    threads: int = 0


_initial = _InitialAffinity()


def available_cores() -> list[int]:
    """Return the cores that this process was given, whether `use_cores` restricts it or not."""
    if _initial.cores is not None:
        return _initial.cores
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_cores(cores: Sequence[int]) -> None:
    """Pin this thread, and threads that it starts, to some cores; torch gets one thread per core."""
    if _initial.cores is None:
        _initial.threads, _initial.cores = torch.get_num_threads(), available_cores()
    _pin(cores)
    torch.set_num_threads(len(cores))


def use_all_cores() -> None:
    """Undo `use_cores`."""
    if _initial.cores is not None:
        _pin(_initial.cores)
        torch.set_num_threads(_initial.threads)
        _initial.cores = None


def _pin(cores: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):  # other systems can only limit the number of threads
        os.sched_setaffinity(0, cores)


# ---- device flags ----


def check_device(name: str | None) -> torch.device:
    """Return the device of that name, with its index; None: cuda if there is one, else cpu.

    Raises:
        ModelLoadError: if the name is not a device, or the device does not exist.
    """
    names = _device_names()
    if name is None:
        return torch.device(names[1] if torch.cuda.is_available() else "cpu")
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in names:
        raise ModelLoadError(f"device = {name!r}: must be one of {', '.join(names)} (the devices of this machine)")
    return torch.device(full_name)


def find_device_slots(text: str | None, flag: str) -> list[DeviceSlot]:
    """Parse a comma-separated list of devices; None: cuda if there is one, else cpu.

    Args:
        text: the flag's value.
        flag: its name in messages, such as "draft_device".

    Raises:
        ModelLoadError: if a name is not a device, does not exist or is repeated, or the list mixes kinds of devices.
    """
    if text is None:
        return [DeviceSlot(check_device(None))]
    slots = [_find_slot(name.strip(), text, flag) for name in text.split(",")]
    if len(set(slots)) < len(slots):
        raise ModelLoadError(f"{flag} = {text!r}: must name each device once")
    is_mixed = len({slot.device.type for slot in slots}) > 1
    if len(slots) > 1 and (is_mixed or slots[0] == DeviceSlot(torch.device("cpu"))):
        raise ModelLoadError(f"{flag} = {text!r}: several devices must be GPUs (cuda:0,cuda:1) or cores (cpu:0,cpu:1)")
    return slots


@dataclass(frozen=True)
class MultiDevice:
    """GPUs that hold the layers of one model.

    Args:
        devices: in the order of their indices, in which a forward passes through them.
        auto: use as few of them as hold the model, and the CPU's memory for layers that do not fit on any.
    """

    devices: tuple[torch.device, ...]
    auto: bool = False

    def __str__(self) -> str:
        return AUTO if self.auto else ",".join(str(device) for device in self.devices)


def parse_devices(text: str | None, flag: str = "target_device") -> torch.device | MultiDevice:
    """Parse a flag's value: one device, a list of GPUs (cuda:0,cuda:1), or "auto" (the devices of this machine).

    None and single names are parsed as by `check_device`; "auto" without a GPU is the CPU.

    Raises:
        ModelLoadError: if a device does not exist or is repeated, or a list names anything but GPUs.
    """
    if text is not None and text.strip() == AUTO:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = tuple(torch.device("cuda", i) for i in range(count))
        return MultiDevice(gpus, auto=True) if gpus else check_device("cpu")
    if text is None or "," not in text:
        return check_device(text)
    names = [name.strip() for name in text.split(",")]
    if AUTO in names or "" in names or any(name.partition(":")[0] == "cpu" for name in names):
        raise ModelLoadError(
            f"{flag} = {text!r}: must list GPUs only (cuda:0,cuda:1); auto uses the CPU's memory if the GPUs are full"
        )
    try:
        devices = [check_device(name) for name in names]
    except ModelLoadError as error:
        raise ModelLoadError(f"{flag} = {text!r}: {str(error).removeprefix('device = ')}") from None
    if len(set(devices)) < len(devices):
        raise ModelLoadError(f"{flag} = {text!r}: must name each device once")
    return MultiDevice(tuple(sorted(devices, key=lambda device: device.index)))


@dataclass(frozen=True)
class CoreSplit:
    """Division of this machine between a target and a drafter that work at the same time.

    Args:
        target_cores: cores that the target is pinned to; None: not pinned.
        draft_slots: the drafter's devices.
    """

    target_cores: list[int] | None
    draft_slots: list[DeviceSlot]


def split_cores(target: DeviceSlot, drafter: Sequence[DeviceSlot]) -> CoreSplit:
    """Give the drafter the last core and the target the others, if both are on "cpu" without a particular core.

    Raises:
        ModelLoadError: if there is only one core.
    """
    all_cores = DeviceSlot(torch.device("cpu"))
    if target != all_cores or list(drafter) != [all_cores]:
        return CoreSplit(None, list(drafter))
    cores = available_cores()
    if len(cores) < 2:
        raise ModelLoadError("overlap = True: needs two devices or two cores; this process may use only one core")
    return CoreSplit(cores[:-1], [DeviceSlot(all_cores.device, cores[-1])])


def _device_names() -> list[str]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda]


def _find_slot(name: str, text: str, flag: str) -> DeviceSlot:
    kind, colon, number = name.partition(":")
    if kind != "cpu" or not colon:
        try:
            return DeviceSlot(check_device(name))
        except ModelLoadError as error:
            raise ModelLoadError(str(error).replace(f"device = {name!r}", f"{flag} = {text!r}", 1)) from None
    cores = available_cores()
    if not number.isdecimal() or int(number) not in cores:
        allowed = ", ".join(f"cpu:{core}" for core in cores)
        raise ModelLoadError(
            f"{flag} = {text!r}: {name} must be one of {allowed} (the cores that this process may use)"
        )
    return DeviceSlot(torch.device("cpu"), int(number))
