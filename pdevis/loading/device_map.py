"""Targets that do not fit one device: whole layers on several devices, or a share of each layer on several ranks.

Spread out, one process drives all devices, and a forward goes through them one after another: memory adds up, time does
not. Sharded, every device has a process, and all of them work on each layer together (transformers' tensor parallelism:
heads, MLP columns and vocabulary are divided, and every rank gets the same whole logits).

    model = read_spread_model(source, torch.bfloat16, parse_devices("cuda:0,cuda:1"))
    target = HFCausalLM(model, "bfloat16")

    ranks = start_ranks()                                   # under torchrun, on every rank
    channel = RankChannel(ranks)
    model = read_sharded_model(source, torch.bfloat16)
    target = TensorParallel(channel, HFCausalLM(model, "bfloat16"))
    if ranks.rank > 0:
        channel.follow()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from pdevis.loading.catalog import ModelLoadError, Source
from pdevis.loading.checkpoint import check_device, read_config, read_model, translate_load_errors
from pdevis.models.causal_lm import CausalLM
from pdevis.parallel.torchrun.process_group import RankChannel

AUTO = "auto"
FILL = 0.9  # of a device's free memory for weights; the rest is for caches and activations
GIB = 2**30

DeviceMap = dict[str, int | str]  # accelerate's: module -> index of the GPU, or "cpu"


@dataclass(frozen=True)
class Spread:
    """GPUs that one model is spread over.

    Args:
        devices: in the order of their indices, in which the layers go through them.
        auto: take as few of them as hold the model, and the CPU's memory for what they do not hold.
    """

    devices: tuple[torch.device, ...]
    auto: bool = False

    def __str__(self) -> str:
        return AUTO if self.auto else ",".join(str(device) for device in self.devices)


def parse_devices(text: str | None, flag: str = "target_device") -> torch.device | Spread:
    """What a flag's text stands for: one device, a list of GPUs (cuda:0,cuda:1), or "auto": what the machine has.

    None and single names are as in `check_device`; so is "auto" without a GPU, where nothing can be spread.

    Raises:
        ModelLoadError: for a device that does not exist or is named twice, or a list with anything but GPUs.
    """
    if text is not None and text.strip() == AUTO:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = tuple(torch.device("cuda", i) for i in range(count))
        return Spread(gpus, auto=True) if gpus else check_device("cpu")
    if text is None or "," not in text:
        return check_device(text)
    names = [name.strip() for name in text.split(",")]
    if AUTO in names or "" in names or any(name.partition(":")[0] == "cpu" for name in names):
        raise ModelLoadError(
            f"{flag} = {text!r}: must list GPUs only (cuda:0,cuda:1); auto takes the CPU's memory where GPUs are full"
        )
    try:
        found = [check_device(name) for name in names]
    except ModelLoadError as error:
        raise ModelLoadError(f"{flag} = {text!r}: {str(error).removeprefix('device = ')}") from None
    if len(set(found)) < len(found):
        raise ModelLoadError(f"{flag} = {text!r}: must name each device once")
    return Spread(tuple(sorted(found, key=lambda device: device.index)))


# ---- whole layers on several devices ----


def read_spread_model(source: Source, dtype: torch.dtype, devices: Spread) -> Any:
    """The transformers model in eval mode, its layers spread over devices; ids go in where its embedding is.

    Raises:
        ModelLoadError: where it does not fit, and for the same reasons as `read_model`.
    """
    config = read_config(source)
    with translate_load_errors(source, "config"), torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config, dtype=dtype)
    free = {device.index: _free_bytes(device) for device in devices.devices}
    if devices.auto:
        free["cpu"] = _fill(psutil.virtual_memory().available)
        placed = fewest_devices(outline, free)
    else:
        placed = place_layers(outline, free)
    if placed is None:
        size = sum(weight.nbytes for weight in outline.parameters())
        raise ModelLoadError(
            f"model = {source.name!r}: {size / GIB:.1f} GiB of weights do not fit on {devices}, which can take "
            f"{sum(free.values()) / GIB:.1f} GiB; "
            f"take more devices{'' if devices.auto else ', auto'} or a smaller model"
        )
    return _read(source, dtype, device_map=placed)


def fewest_devices(outline: Any, room: dict[int | str, int]) -> DeviceMap | None:
    """A place for every module on as few GPUs as hold the model, those with most room first; else on all and the CPU.

    Args:
        outline: the model, without weights (on the meta device).
        room: bytes that each GPU and "cpu" can take; what lies on the CPU is copied to a GPU in every forward.
    """
    gpus = sorted((place for place in room if place != "cpu"), key=lambda gpu: -room[gpu])
    for count in range(1, len(gpus) + 1):
        if placed := place_layers(outline, {gpu: room[gpu] for gpu in sorted(gpus[:count])}):
            return placed
    return place_layers(outline, room)


def place_layers(outline: Any, room: dict[int | str, int]) -> DeviceMap | None:
    """A place for every module within `room` (bytes), no layer divided: evenly, else one device after the other."""
    from accelerate import infer_auto_device_map  # not at the top: importing it changes the warning filters
    from accelerate.utils import get_balanced_memory

    whole = list(outline._no_split_modules or ())
    for budget in (get_balanced_memory(outline, dict(room), no_split_module_classes=whole), dict(room)):
        placed = infer_auto_device_map(outline, budget, no_split_module_classes=whole)
        if "disk" not in placed.values():
            return dict(placed)
    return None


def _free_bytes(gpu: torch.device) -> int:
    """What weights may take there: what the driver calls free, and what torch keeps in reserve."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return _fill(free + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu))


def _fill(free: int) -> int:
    return int(FILL * free)


# ---- a share of each layer on several ranks ----


def read_sharded_model(source: Source, dtype: torch.dtype) -> Any:
    """This rank's share of the transformers model in eval mode; every rank of the process group has to call it.

    Raises:
        ModelLoadError: for heads that cannot be divided, and for the same reasons as `read_model`.
    """
    config, size = read_config(source).get_text_config(), dist.get_world_size()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or size
        if heads % size:
            raise ModelLoadError(f"model = {source.name!r}: its {name} = {heads} cannot be divided among {size} ranks")
    return _read(source, dtype, distributed_config=DistributedConfig(tp_size=size))


class TensorParallel:
    """A sharded model behind the `CausalLM` protocol: rank 0 decodes, and each step of it happens on every rank.

    To be made on every rank. Only rank 0 uses it further; the others follow the channel.
    """

    def __init__(self, channel: RankChannel, model: CausalLM, name: str = "target") -> None:
        self.model = model
        self.vocab_size = model.vocab_size
        self.context_length = model.context_length
        self.device = model.device
        self.tokens: list[int] = []
        self._channel = channel
        self._name = name
        channel.register(f"{name} forward", lambda ids: model.forward(self._tensor(ids)))
        channel.register(f"{name} prefill", lambda ids: model.prefill(self._tensor(ids)))
        channel.register(f"{name} rewind", model.rewind)

    @property
    def length(self) -> int:
        return self.model.length  # the same on every rank

    def forward(self, ids: Tensor) -> Tensor:
        return self._channel.call(f"{self._name} forward", ids.tolist())

    def prefill(self, ids: Tensor) -> None:
        self._channel.call(f"{self._name} prefill", ids.tolist())

    def rewind(self, length: int) -> None:
        if self._channel.alive:  # else there is nothing to rewind, and whoever asks next is told
            self._channel.call(f"{self._name} rewind", length)

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.device)


def _read(source: Source, dtype: torch.dtype, **placement: Any) -> Any:
    if source.gguf_file:
        raise ModelLoadError(f"model = {source.name!r}: a GGUF file goes to one device")
    return read_model(source, dtype, torch.device("cpu"), **placement)
