"""From one model's specification to a model that is ready to decode, on one device or on several.

`build_model` loads a `LoadSpec`: as a `DecoderStack` if the family is supported, else through transformers. Processes
that run a drafter call it too, each with its shard.

A target that does not fit one device runs through transformers, in one of two ways. With whole layers on several GPUs,
one process drives all of them, and a forward passes through them one after another: memory adds up, speed does not.
With shards, every rank of torchrun has a device, and all of them work on each layer together (transformers' tensor
parallelism: heads, MLP columns and vocabulary are divided, and every rank gets the complete logits).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist

from pdevis.devices import DeviceSlot, MultiDevice
from pdevis.loading.catalog import Source
from pdevis.loading.checkpoint import read_class_config, read_model, translate_load_errors
from pdevis.loading.hub import without_progress_bars
from pdevis.loading.weights.families import unsupported_reason
from pdevis.loading.weights.prepared_weights import PREPARED_PRECISION, find_prepared, fingerprint, save_prepared
from pdevis.loading.weights.random_models import RandomTensors
from pdevis.loading.weights.safetensors_files import OpenedModel, open_model
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.causal_lm import CausalLM
from pdevis.models.layers import WHOLE, ShardSpec
from pdevis.models.linear import storage_dtype
from pdevis.models.stack import DecoderStack
from pdevis.models.static.start import set_up_static_shapes
from pdevis.util.validation import ModelLoadError

if TYPE_CHECKING:
    from pdevis.parallel.torchrun.process_group import Ranks

WEIGHTS_FRACTION = 0.9  # of a device's free memory; the rest is for caches and activations
GIB = 2**30

DeviceMap = dict[str, int | str]  # accelerate's: module -> index of the GPU, or "cpu"


@dataclass(frozen=True)
class LoadSpec:
    """One model to load: everything that is known before its weights are read.

    Args:
        name: as the user gave it.
        role: "target" or "drafter".
        source: of its files.
        config: its transformers config.
        device: for its weights; the first one of several.
        precision: its weight format, resolved.
        head_rows: number of ids that its output head covers; None: all.
        multi_device: the devices or ranks of a model that does not run on one device, through transformers.
    """

    name: str
    role: str
    _: KW_ONLY
    source: Source
    config: Any
    device: torch.device
    precision: str
    head_rows: int | None = None
    multi_device: MultiDevice | Ranks | None = None

    @property
    def hf_only_reason(self) -> str | None:
        """Why this model runs through transformers; None if it runs as a `DecoderStack`."""
        return unsupported_reason(self.config) or ("a model on several devices" if self.multi_device else None)


def check_lanes(draft_device: str | None, slots: Sequence[DeviceSlot], config: Any) -> None:
    """Raise ValueError if several devices are given for a drafter whose layers cannot be divided among them."""
    if len(slots) > 1 and (reason := unsupported_reason(config)):
        raise ValueError(f"draft_device = {draft_device!r}: must be one device for {reason}")


# ---- whole layers on several GPUs ----


def read_multi_device_model(source: Source, dtype: torch.dtype, devices: MultiDevice) -> Any:
    """Read the transformers model in eval mode, its layers on several devices; it takes ids on its embedding's device.

    Raises:
        ModelLoadError: if the model does not fit, and for the same reasons as `read_model`.
    """
    from transformers import AutoModelForCausalLM  # not at the top: its modelling code takes seconds to import

    config = read_class_config(source)
    with translate_load_errors(source, "config"), torch.device("meta"):
        meta_model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    capacity: dict[int | str, int] = {device.index: _bytes_for_weights(device) for device in devices.devices}
    if devices.auto:
        capacity["cpu"] = int(WEIGHTS_FRACTION * psutil.virtual_memory().available)
        device_map = fewest_devices(meta_model, capacity)
    else:
        device_map = assign_layers(meta_model, capacity)
    if device_map is None:
        size = sum(weight.nbytes for weight in meta_model.parameters())
        raise ModelLoadError(
            f"model = {source.name!r}: {size / GIB:.1f} GiB of weights do not fit on {devices}, which can hold "
            f"{sum(capacity.values()) / GIB:.1f} GiB; "
            f"use more devices{'' if devices.auto else ', auto'} or a smaller model"
        )
    return _read_placed(source, dtype, device_map=device_map)


def fewest_devices(meta_model: Any, capacity: dict[int | str, int]) -> DeviceMap | None:
    """Assign modules to as few GPUs as hold the model, largest capacity first; if too small, to all and the CPU.

    Args:
        meta_model: the model, without weights (on the meta device).
        capacity: bytes of weights that each GPU and "cpu" can hold. Every forward copies weights on "cpu" to a GPU.

    Returns:
        The device of each module; None if the model does not fit.
    """
    gpus = sorted((device for device in capacity if device != "cpu"), key=lambda gpu: -capacity[gpu])
    for count in range(1, len(gpus) + 1):
        if device_map := assign_layers(meta_model, {gpu: capacity[gpu] for gpu in sorted(gpus[:count])}):
            return device_map
    return assign_layers(meta_model, capacity)


def assign_layers(meta_model: Any, capacity: dict[int | str, int]) -> DeviceMap | None:
    """Assign modules to devices without dividing a layer: evenly if possible, else filling one device after another.

    Arguments and result as for `fewest_devices`.
    """
    from accelerate import infer_auto_device_map  # not at the top: importing it changes the warning filters
    from accelerate.utils import get_balanced_memory

    undivided = list(meta_model._no_split_modules or ())
    balanced = get_balanced_memory(meta_model, dict(capacity), no_split_module_classes=undivided)
    for limits in (balanced, dict(capacity)):
        device_map = infer_auto_device_map(meta_model, limits, no_split_module_classes=undivided)
        if "disk" not in device_map.values():
            return dict(device_map)
    return None


def _bytes_for_weights(gpu: torch.device) -> int:
    """Return the bytes of weights that a GPU can hold: from free memory and what torch keeps in reserve."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return int(WEIGHTS_FRACTION * (free + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)))


# ---- shards of each layer on several ranks ----


def read_sharded_model(source: Source, dtype: torch.dtype) -> Any:
    """Read this rank's shard of the transformers model in eval mode; every rank of the process group must call it.

    Raises:
        ModelLoadError: if the heads cannot be divided among the ranks, and for the same reasons as `read_model`.
    """
    from transformers.distributed import DistributedConfig  # not at the top: as above

    config, size = read_class_config(source).get_text_config(), dist.get_world_size()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or size
        if heads % size:
            raise ModelLoadError(f"model = {source.name!r}: its {name} = {heads} cannot be divided among {size} ranks")
    return _read_placed(source, dtype, distributed_config=DistributedConfig(tp_size=size))


def _read_placed(source: Source, dtype: torch.dtype, **placement: Any) -> Any:
    if source.gguf_file or source.kind == "random":
        kind = "a GGUF file" if source.gguf_file else "random weights"
        raise ModelLoadError(f"model = {source.name!r}: {kind} can be loaded on one device only")
    return read_model(source, dtype, torch.device("cpu"), **placement)


# ---- any model ----


def read_transformers_model(spec: LoadSpec, dtype: torch.dtype) -> Any:
    """Read a model's weights in `dtype`, or open its files (`OpenedModel`). Errors as for `read_model`."""
    if isinstance(spec.multi_device, MultiDevice):
        return read_multi_device_model(spec.source, storage_dtype(spec.precision), spec.multi_device)
    if spec.multi_device:
        return read_sharded_model(spec.source, storage_dtype(spec.precision))
    if unsupported_reason(spec.config):
        return read_model(spec.source, dtype, spec.device, nf4=spec.precision == "nf4")
    if spec.source.kind == "random":
        return OpenedModel(spec.config, RandomTensors(spec.config, dtype, spec.device), None)
    with translate_load_errors(spec.source, "weights"):
        opened = open_model(spec.source, spec.config)
    # A stack copies the weights to its device layer by layer.
    return opened or read_model(spec.source, dtype, torch.device("cpu"))


def make_causal_lm(loaded: Any, spec: LoadSpec, *, consume: bool, shard: ShardSpec = WHOLE) -> CausalLM:
    """Make a model that was opened or read ready to decode; arguments as for `read_weights`."""
    if spec.hf_only_reason:
        return _make_hf_causal_lm(loaded, spec)
    with translate_load_errors(spec.source, "weights"):  # weights reach their device and format here
        is_on_disk = isinstance(loaded, OpenedModel) and spec.source.kind != "random"
        may_prepare = is_on_disk and spec.precision == PREPARED_PRECISION
        prepared = find_prepared(loaded) if may_prepare else None
        weights = read_weights(
            loaded,
            spec.precision,
            spec.device,
            consume=consume,
            head_rows=spec.head_rows,
            shard=shard,
            drafter=spec.role == "drafter",
            prepared=prepared,
        )
        if may_prepare and not prepared and shard == WHOLE and spec.head_rows is None:
            save_prepared(loaded, weights)
    return DecoderStack(weights, batch_invariant=spec.role != "drafter")


def _make_hf_causal_lm(loaded: Any, spec: LoadSpec) -> CausalLM:
    """Find out how a transformers model can be run exactly. Raises ModelLoadError if it cannot."""
    # not at the top: the caches of transformers need its modelling code
    from pdevis.models.hf.hf_causal_lm import HFCausalLM
    from pdevis.models.hf.self_test import InexactModelError, find_way

    try:
        way = find_way(loaded)
    except InexactModelError as error:
        raise ModelLoadError(f"model = {spec.name!r}: {type(loaded).__name__} is not supported: {error}") from error
    return HFCausalLM(loaded, spec.precision, way)


def model_fingerprint(spec: LoadSpec) -> str | None:
    """Return a hash of the files that a stack is read from; None if they are not safetensors files.

    A model without files has its name.
    """
    if spec.source.kind == "random":
        return spec.name
    with translate_load_errors(spec.source, "weights"):
        opened = open_model(spec.source, spec.config)
    return fingerprint(opened) if opened else None


def _print_note(line: str) -> None:
    if line.startswith("note: "):
        print(line, file=sys.stderr, flush=True)


def build_model(spec: LoadSpec, shard: ShardSpec = WHOLE, *, static_shapes: bool = False) -> CausalLM:
    """Load one model, or one device's shard of it. Errors as for `read_model`; notes go to stderr."""
    with without_progress_bars():
        loaded = read_transformers_model(spec, storage_dtype(spec.precision))
    model = make_causal_lm(loaded, spec, consume=True, shard=shard)
    if static_shapes and shard == WHOLE:  # the exact passes of several devices exchange data at each layer
        set_up_static_shapes(model, spec.role, _print_note)
    return model
