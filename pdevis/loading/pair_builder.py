"""From two model names to two models that are ready to decode.

`build_pair` works in the order of cost: devices, files, architectures, weight formats and tokenizers are checked before
any weight is read.

    built = build_pair(PairSpec(target="qwen-8b", drafter="qwen-0.6b", target_device="cuda:1"), print)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pdevis.config import AUTO, DEFAULT, MODEL, RANKS, SAMPLING, DecodeConfig
from pdevis.controls.model_settings import read_model_settings
from pdevis.devices import DeviceSlot, MultiDevice, find_device_slots, parse_devices, split_cores, use_cores
from pdevis.drafting.rule import check_mode
from pdevis.loading.checkpoint import (
    check_same_tokenizer,
    find_source,
    read_config,
    read_tokenizer,
    stop_ids,
)
from pdevis.loading.model_builder import LoadSpec, check_lanes, make_causal_lm, read_transformers_model
from pdevis.loading.weights.families import FAMILIES, unsupported_reason
from pdevis.models.causal_lm import CausalLM
from pdevis.models.linear import PRECISIONS, STACK_FORMATS, resolve_precision, storage_dtype
from pdevis.models.stack import DecoderStack
from pdevis.models.static.start import GRAPHS
from pdevis.parallel.torchrun.process_group import RankChannel, Ranks, start_ranks, under_torchrun
from pdevis.parallel.torchrun.tensor_parallel import TensorParallel
from pdevis.text import set_thinking
from pdevis.util.validation import ModelLoadError, check_integer, check_one_of

THINKING = ("auto", "on", "off")
SELF = "self"  # as a drafter: the target's own weights
SUPPORTED = f"{', '.join(FAMILIES)} with full attention"

Progress = Callable[[str], None]


# ---- settings and placement ----


@dataclass(frozen=True)
class PairSpec:
    """A target and a drafter to load. The fields have the meaning of `load_pair`'s arguments.

    Raises:
        ValueError: if a value is wrong on its own, whatever the machine and the models are.
    """

    target: str
    drafter: str = SELF
    target_device: str | None = None
    draft_device: str | None = None
    target_precision: str = AUTO
    draft_precision: str = AUTO
    mode: str = AUTO
    draft_vocab: int | None = None
    overlap: bool = False
    graphs: str = AUTO
    thinking: str = AUTO
    sampling: str = DEFAULT

    def __post_init__(self) -> None:
        check_one_of("graphs", self.graphs, GRAPHS)
        check_one_of("thinking", self.thinking, THINKING)
        check_one_of("sampling", self.sampling, SAMPLING)
        check_one_of("target_precision", self.target_precision, PRECISIONS)
        check_one_of("draft_precision", self.draft_precision, PRECISIONS)
        if self.draft_vocab is not None:
            check_integer("draft_vocab", self.draft_vocab, minimum=1)
        if self.draft_device == RANKS and (self.overlap or self.target_device != RANKS):
            raise ModelLoadError(f"draft_device = {RANKS!r}: needs target_device = {RANKS!r}, and no overlap")


@dataclass(frozen=True)
class Placement:
    """Devices and weight formats of a pair.

    Args:
        target_device: the target's device, the first one of several.
        multi_device: the devices or ranks of a target that does not run on one device.
        target_cores: CPU cores that this process is pinned to; None: not pinned.
        draft_slots: the drafter's devices, each with its own process if there are several.
        draft_on_ranks: the drafter runs on the ranks of torchrun.
        draft_is_remote: other processes load the drafter, or all ranks of torchrun do: `build_pair` does not.
        is_follower: this process is a rank of torchrun other than the first: it prints nothing.
        target_precision, draft_precision: resolved, for these devices.
    """

    target_device: torch.device
    multi_device: MultiDevice | Ranks | None
    target_cores: list[int] | None
    draft_slots: list[DeviceSlot]
    draft_on_ranks: bool
    draft_is_remote: bool
    is_follower: bool
    target_precision: str
    draft_precision: str

    @property
    def target_label(self) -> str:
        cores = ",".join(f"cpu:{core}" for core in self.target_cores or ())
        return cores or str(self.multi_device or self.target_device)

    @property
    def draft_label(self) -> str:
        return RANKS if self.draft_on_ranks else ",".join(map(str, self.draft_slots))


def place_pair(spec: PairSpec) -> Placement:
    """Decide devices and weight formats. Under torchrun, this joins the other ranks.

    Raises:
        ValueError: if a device does not exist, or does not support the weight format.
    """
    target_slot, multi_device = _find_target(spec.target_device)
    draft_on_ranks = spec.draft_device == RANKS
    draft_slots = [target_slot] if draft_on_ranks else find_device_slots(spec.draft_device, "draft_device")
    target_cores = None if target_slot.core is None else [target_slot.core]
    if spec.overlap and not multi_device:
        split = split_cores(target_slot, draft_slots)
        target_cores, draft_slots = split.target_cores or target_cores, split.draft_slots
    is_follower = isinstance(multi_device, Ranks) and multi_device.rank > 0
    has_processes = spec.overlap or len(draft_slots) > 1 or draft_slots[0].core is not None
    return Placement(
        target_device=target_slot.device,
        multi_device=multi_device,
        target_cores=target_cores,
        draft_slots=draft_slots,
        draft_on_ranks=draft_on_ranks,
        draft_is_remote=is_follower or draft_on_ranks or has_processes,
        is_follower=is_follower,
        target_precision=resolve_precision(spec.target_precision, target_slot.device, "target"),
        draft_precision=resolve_precision(spec.draft_precision, draft_slots[0].device, "drafter"),
    )


def _find_target(text: str | None) -> tuple[DeviceSlot, MultiDevice | Ranks | None]:
    """Return the target's device, or the first one of several and all of them."""
    if text == RANKS:
        if not under_torchrun():
            raise ModelLoadError(
                f"target_device = {RANKS!r}: needs torchrun --nproc_per_node N, which starts the ranks"
            )
        ranks = start_ranks()
        return DeviceSlot(ranks.device), ranks
    if text is None or ("," not in text and text != AUTO):
        return find_device_slots(text, "target_device")[0], None
    devices = parse_devices(text)
    if isinstance(devices, MultiDevice):
        return DeviceSlot(devices.devices[0]), devices
    return DeviceSlot(devices), None


# ---- checks before loading ----


def _find_models(spec: PairSpec, placement: Placement, on_progress: Progress) -> tuple[LoadSpec, LoadSpec]:
    """Find both models and check that their architectures allow the settings; returns target and drafter."""
    target_source = find_source(spec.target, on_progress)
    draft_source = target_source if spec.drafter == SELF else find_source(spec.drafter, on_progress)
    target_config = read_config(target_source)
    draft_config = target_config if spec.drafter == SELF else read_config(draft_source)
    check_mode(spec.mode, not unsupported_reason(draft_config))
    check_lanes(spec.draft_device, placement.draft_slots, draft_config)
    on_several = placement.multi_device is not None
    target_reason = "a model on several devices" if on_several else unsupported_reason(target_config)
    draft_reason = unsupported_reason(draft_config)
    if on_several and placement.target_precision == "nf4":
        raise ValueError("target_precision = 'nf4': not supported for a model on several devices; use bfloat16")
    target = LoadSpec(
        spec.target,
        "target",
        source=target_source,
        config=target_config,
        device=placement.target_device,
        precision=_fit_precision("target_precision", spec.target_precision, placement.target_precision, target_reason),
        multi_device=placement.multi_device,
    )
    drafter = LoadSpec(
        spec.drafter,
        "drafter",
        source=draft_source,
        config=draft_config,
        device=placement.draft_slots[0].device,
        precision=_fit_precision("draft_precision", spec.draft_precision, placement.draft_precision, draft_reason),
        head_rows=_fit_head_rows(spec.draft_vocab, draft_config),
    )
    return target, drafter


def _fit_precision(flag: str, asked: str, resolved: str, hf_only_reason: str | None) -> str:
    """Return a weight format that the model supports; raise ValueError if the user asked for another one.

    Args:
        flag: name of the setting.
        asked: its value.
        resolved: the format for the model's device.
        hf_only_reason: why the model runs through transformers; None if it runs as a `DecoderStack`.
    """
    if resolved not in STACK_FORMATS or hf_only_reason is None:
        return resolved
    if asked == AUTO:
        return "float32"
    raise ValueError(f"{flag} = {asked!r}: only for {SUPPORTED}, not for {hf_only_reason}; use float32 or bfloat16")


def _fit_head_rows(draft_vocab: int | None, config: Any) -> int | None:
    """Return the number of ids of the drafter's output head; raise ValueError if the head cannot be reduced."""
    if draft_vocab is None:
        return None
    if reason := unsupported_reason(config):
        raise ValueError(f"draft_vocab = {draft_vocab!r}: not supported for {reason}")
    return min(draft_vocab, config.vocab_size)


def _read_tokenizer(target: LoadSpec, drafter: LoadSpec) -> Any:
    """Read the target's tokenizer, and make sure that the drafter has the same."""
    tokenizer = read_tokenizer(target.source)
    if drafter.name != SELF:
        check_same_tokenizer(tokenizer, read_tokenizer(drafter.source))
    return tokenizer


# ---- loading ----


@dataclass(frozen=True)
class BuiltPair:
    """A pair before its drafter is started.

    Args:
        target: the loaded target.
        drafter: the loaded drafter, or the specification of one that other processes load.
        channel: to the other ranks of torchrun; None without torchrun.
        draft_spec: the drafter's specification, loaded or not.
        draft_slots: the drafter's devices.
        tokenizer: of both models.
        eos_ids: ids that end the target's text.
        defaults: settings of a generation that is given none: those of the target's authors, if they are asked for.
        labels: names, devices and weight formats for `SpeculativePair.describe`.
    """

    target: CausalLM
    drafter: CausalLM | LoadSpec
    channel: RankChannel | None
    draft_spec: LoadSpec
    draft_slots: list[DeviceSlot]
    tokenizer: Any
    eos_ids: tuple[int, ...]
    defaults: DecodeConfig
    labels: dict[str, Any]


def drafts_for_itself(labels: Mapping[str, Any]) -> bool:
    """Return True if a pair's drafter has the target's own weights, whatever their formats are."""
    return labels["drafter"] in (SELF, labels["target"])


def build_pair(spec: PairSpec, on_progress: Progress) -> BuiltPair:
    """Load both models; everything cheap is checked before weights are read.

    Args:
        spec: the pair.
        on_progress: called with a line of text at each stage.

    Raises:
        ValueError: for the reasons of `load_pair`.
    """
    placement = place_pair(spec)
    if placement.is_follower:
        on_progress = _ignore
    target_spec, draft_spec = _find_models(spec, placement, on_progress)
    tokenizer = _read_tokenizer(target_spec, draft_spec)
    if spec.thinking != AUTO:
        set_thinking(tokenizer, spec.thinking == "on")
    if placement.target_cores:
        use_cores(placement.target_cores)
    channel = RankChannel(placement.multi_device) if isinstance(placement.multi_device, Ranks) else None
    loaded = _load_models(target_spec, draft_spec, placement, on_progress)
    eos_ids = stop_ids(loaded.generation_config, target_spec.config, tokenizer)
    settings = read_model_settings(loaded.generation_config, eos_ids)
    for note in settings.notes(spec.target, spec.sampling):
        on_progress(note)
    labels = {
        "target": spec.target,
        "drafter": spec.drafter,
        "target_device": placement.target_label,
        "draft_device": placement.draft_label,
        "target_precision": target_spec.precision,
        "draft_precision": draft_spec.precision,
        "draft_vocab": spec.draft_vocab,
        **({"sampling": settings.as_json()} if spec.sampling == MODEL else {}),
    }
    return BuiltPair(
        target=TensorParallel(channel, loaded.target) if channel else loaded.target,
        drafter=loaded.drafter,
        channel=channel,
        draft_spec=draft_spec,
        draft_slots=placement.draft_slots,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        defaults=settings.as_config(spec.target) if spec.sampling == MODEL else DecodeConfig(),
        labels=labels,
    )


def check_graphs(built: BuiltPair, graphs: str) -> None:
    """Raise ValueError if graphs are asked for and one of the models cannot have them."""
    if graphs != "on":
        return
    for role, model in (("target", built.target), ("drafter", built.drafter)):
        remote = isinstance(model, LoadSpec)
        if model.hf_only_reason if remote else not isinstance(model, DecoderStack):
            raise ValueError(f"graphs = 'on': only for {SUPPORTED}, a target on one device; not for this {role}")


@dataclass(frozen=True)
class _LoadedModels:
    target: CausalLM
    drafter: CausalLM | LoadSpec
    generation_config: Any  # the target's


def _load_models(target: LoadSpec, drafter: LoadSpec, placement: Placement, on_progress: Progress) -> _LoadedModels:
    if placement.draft_is_remote or placement.multi_device:
        target_model, generation_config = _load(target, on_progress)  # first, since its layers fill several devices
        draft_model = drafter if placement.draft_is_remote else _load(drafter, on_progress)[0]
        return _LoadedModels(target_model, draft_model, generation_config)
    if drafter.name == SELF:
        return _load_shared(target, drafter, on_progress)
    return _load_separately(target, drafter, on_progress)


def _load(spec: LoadSpec, on_progress: Progress) -> tuple[CausalLM, Any]:
    """Load one model; returns it and its generation config."""
    _report_loading(spec, on_progress)
    loaded = read_transformers_model(spec, storage_dtype(spec.precision))
    generation_config = loaded.generation_config
    return _make_causal_lm(loaded, spec, on_progress), generation_config


def _make_causal_lm(loaded: Any, spec: LoadSpec, on_progress: Progress, *, consume: bool = True) -> CausalLM:
    """Make a model ready to decode, and report if it has to be run in a slower way to be exact."""
    model = make_causal_lm(loaded, spec, consume=consume)
    if note := getattr(model, "note", None):
        on_progress(f"note: {spec.name} {note}")
    return model


def _load_separately(target: LoadSpec, drafter: LoadSpec, on_progress: Progress) -> _LoadedModels:
    draft_model, _ = _load(drafter, on_progress)
    target_model, generation_config = _load(target, on_progress)
    return _LoadedModels(target_model, draft_model, generation_config)


def _load_shared(target: LoadSpec, drafter: LoadSpec, on_progress: Progress) -> _LoadedModels:
    """Read the weights once for both models, which share them if format, device and head are the same."""
    same = (target.precision, target.device, None) == (drafter.precision, drafter.device, drafter.head_rows)
    if unsupported_reason(target.config) and not same:
        return _load_separately(target, drafter, on_progress)
    dtypes = {storage_dtype(target.precision), storage_dtype(drafter.precision)}
    _report_loading(target, on_progress)
    loaded = read_transformers_model(target, dtypes.pop() if len(dtypes) == 1 else torch.float32)
    draft_model = _make_causal_lm(loaded, target if same else drafter, on_progress, consume=same)
    target_model = draft_model.with_own_cache() if same else _make_causal_lm(loaded, target, on_progress)
    return _LoadedModels(target_model, draft_model, loaded.generation_config)


def _report_loading(spec: LoadSpec, on_progress: Progress) -> None:
    device = spec.multi_device or spec.device
    on_progress(f"loading the {spec.role}, {spec.name} ({spec.precision} on {device})")


def _ignore(line: str) -> None:
    pass
