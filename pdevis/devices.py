"""Where a model runs: from the words of `--target_device` and `--draft_device` to devices and CPU cores.

`cpu` is all cores together, as torch uses them. `cpu:2` is one core: what runs there is pinned to it, with one thread.
Several devices are a list, `cuda:0,cuda:1` or `cpu:0,cpu:1`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pdevis.loading.catalog import ModelLoadError
from pdevis.loading.checkpoint import check_device


@dataclass(frozen=True)
class DeviceSlot:
    """A device; `core` is the one CPU core that is meant, None: no core in particular."""

    device: torch.device
    core: int | None = None

    def __str__(self) -> str:
        return str(self.device) if self.core is None else f"cpu:{self.core}"

    def activate(self) -> None:
        """Make this process run here: on its core with one thread, or with its GPU as the current one."""
        if self.core is not None:
            use_cores([self.core])
        elif self.device.type == "cuda":
            torch.cuda.set_device(self.device)


@dataclass
class _Before:
    """The cores and threads of this process before it was kept to some of them."""

    cores: list[int] | None = None
    threads: int = 0


_before = _Before()


def cores() -> list[int]:
    """The cores that this process was given."""
    if _before.cores is not None:
        return _before.cores
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_cores(chosen: Sequence[int]) -> None:
    """Keep this thread, and those that it starts, to some cores, with as many threads for torch."""
    if _before.cores is None:
        _before.threads, _before.cores = torch.get_num_threads(), cores()
    _pin(chosen)
    torch.set_num_threads(len(chosen))


def use_all_cores() -> None:
    """Undo `use_cores`."""
    if _before.cores is not None:
        _pin(_before.cores)
        torch.set_num_threads(_before.threads)
        _before.cores = None


def _pin(chosen: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):  # elsewhere the number of threads is all that can be said
        os.sched_setaffinity(0, chosen)


def find_device_slots(text: str | None, flag: str) -> list[DeviceSlot]:
    """The places of a comma-separated list; None: cuda where there is one, else cpu.

    Args:
        flag: what the user calls it, such as "draft_device".

    Raises:
        ModelLoadError: for a name that is no device, one that does not exist, one named twice, or a mixture.
    """
    if text is None:
        return [DeviceSlot(check_device(None))]
    found = [_find(name.strip(), text, flag) for name in text.split(",")]
    if len(set(found)) < len(found):
        raise ModelLoadError(f"{flag} = {text!r}: must name each device once")
    if len(found) > 1 and (
        len({place.device.type for place in found}) > 1 or found[0] == DeviceSlot(torch.device("cpu"))
    ):
        raise ModelLoadError(f"{flag} = {text!r}: several devices must be GPUs (cuda:0,cuda:1) or cores (cpu:0,cpu:1)")
    return found


def _find(name: str, text: str, flag: str) -> DeviceSlot:
    kind, colon, number = name.partition(":")
    if kind != "cpu" or not colon:
        try:
            return DeviceSlot(check_device(name))
        except ModelLoadError as error:
            raise ModelLoadError(str(error).replace(f"device = {name!r}", f"{flag} = {text!r}", 1)) from None
    there = cores()
    if not number.isdecimal() or int(number) not in there:
        allowed = ", ".join(f"cpu:{core}" for core in there)
        raise ModelLoadError(
            f"{flag} = {text!r}: {name} must be one of {allowed} (the cores that this process may use)"
        )
    return DeviceSlot(torch.device("cpu"), int(number))


def split_cores(target: DeviceSlot, drafter: Sequence[DeviceSlot]) -> tuple[list[int] | None, list[DeviceSlot]]:
    """Cores for a target and a drafter that work at the same time, where both are on "cpu" and none was named.

    Returns:
        The target's cores (None: as they are), and the drafter's places: the last core.

    Raises:
        ModelLoadError: where there is one core only.
    """
    whole = DeviceSlot(torch.device("cpu"))
    if target != whole or list(drafter) != [whole]:
        return None, list(drafter)
    there = cores()
    if len(there) < 2:
        raise ModelLoadError("overlap = True: needs two devices or two cores; this process may use one core only")
    return there[:-1], [DeviceSlot(whole.device, there[-1])]
