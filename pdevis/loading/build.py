"""From names to two models ready to decode: which files, which architecture, which weight format, on which device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pdevis.config import RANKS
from pdevis.devices import DeviceSlot, find_device_slots, split_cores, use_cores
from pdevis.drafting.rule import check_mode
from pdevis.loading.catalog import ModelLoadError
from pdevis.loading.checkpoint import (
    check_same_tokenizer,
    find_source,
    read_config,
    read_model,
    read_tokenizer,
    stop_ids,
    translate_load_errors,
)
from pdevis.loading.device_map import Spread, TensorParallel, read_sharded_model, read_spread_model
from pdevis.loading.load_spec import SELF, LoadSpec, check_draft_vocab, check_lanes, find_target, fit_precision
from pdevis.loading.progress_bars import without_bars
from pdevis.loading.safetensors_stream import stream_model
from pdevis.loading.shard_spec import WHOLE, ShardSpec
from pdevis.loading.weight_reader import FAMILIES, read_weights, unsupported_reason
from pdevis.models.causal_lm import CausalLM
from pdevis.models.compiled import compile_stack
from pdevis.models.hf import HFCausalLM
from pdevis.models.linear import resolve_precision, storage_dtype
from pdevis.models.stack import DecoderStack
from pdevis.parallel.torchrun.process_group import RankChannel, Ranks


@dataclass(frozen=True)
class Built:
    """What `build_pair` hands to the façade; a drafter that is to run elsewhere is a plan still."""

    target: CausalLM
    drafter: CausalLM | LoadSpec
    channel: RankChannel | None  # to the other ranks of torchrun
    draft_plan: LoadSpec
    draft_places: list[DeviceSlot]
    tokenizer: Any
    eos_ids: tuple[int, ...]
    labels: dict[str, Any]


def build_pair(
    target: str,
    drafter: str,
    target_device: str | None,
    draft_device: str | None,
    target_precision: str,
    draft_precision: str,
    mode: str,
    draft_vocab: int | None,
    overlap: bool,
    say: Callable[[str], None],
) -> Built:
    """Load both models; arguments and errors as for `load_pair`. Everything cheap is checked before weights load."""
    own = drafter == SELF
    on_ranks = draft_device == RANKS
    if on_ranks and (overlap or target_device != RANKS):
        raise ModelLoadError(f"draft_device = {RANKS!r}: needs target_device = {RANKS!r}, and no overlap")
    target_place, spread = find_target(target_device)
    follows = isinstance(spread, Ranks) and spread.rank > 0  # rank 0 speaks, and has the drafter unless all ranks do
    say = (lambda line: None) if follows else say
    places = [target_place] if on_ranks else find_device_slots(draft_device, "draft_device")
    target_cores, places = split_cores(target_place, places) if overlap and not spread else (None, places)
    away = follows or overlap or on_ranks or len(places) > 1 or places[0].core is not None
    devices = target_place.device, places[0].device
    formats = [
        resolve_precision(asked, device, role)
        for asked, device, role in zip((target_precision, draft_precision), devices, ("target", "drafter"))
    ]
    target_source = find_source(target, say)
    draft_source = target_source if own else find_source(drafter, say)
    target_config = read_config(target_source)
    draft_config = target_config if own else read_config(draft_source)
    check_mode(mode, not unsupported_reason(draft_config))
    check_lanes(draft_device, places, draft_config)
    for_target = LoadSpec(
        target,
        "target",
        target_source,
        target_config,
        devices[0],
        fit_precision(target_precision, formats[0], target_config, "target_precision", spread is not None),
        spread=spread,
    )
    for_drafter = LoadSpec(
        drafter,
        "drafter",
        draft_source,
        draft_config,
        devices[1],
        fit_precision(draft_precision, formats[1], draft_config, "draft_precision"),
        check_draft_vocab(draft_vocab, draft_config),
    )
    tokenizer = read_tokenizer(target_source)
    if not own:
        check_same_tokenizer(tokenizer, read_tokenizer(draft_source))
    if target_cores or target_place.core is not None:
        use_cores(target_cores or [target_place.core])
    channel = RankChannel(spread) if isinstance(spread, Ranks) else None
    draft_model: CausalLM | LoadSpec = for_drafter
    if away or spread:
        target_model, generation_config = _load_one(for_target, say)
        if channel:
            target_model = TensorParallel(channel, target_model)
        if not away:
            draft_model, _ = _load_one(for_drafter, say)
    else:
        target_model, draft_model, generation_config = (
            _load_own(for_target, for_drafter, say) if own else (_load_two(for_target, for_drafter, say))
        )
    labels = {
        "target": target,
        "drafter": drafter,
        "target_device": ",".join(f"cpu:{core}" for core in target_cores or ()) or str(spread or target_place),
        "draft_device": RANKS if on_ranks else ",".join(map(str, places)),
        "target_precision": for_target.precision,
        "draft_precision": for_drafter.precision,
        "draft_vocab": draft_vocab,
    }
    eos_ids = stop_ids(generation_config, target_config, tokenizer)
    return Built(target_model, draft_model, channel, for_drafter, places, tokenizer, eos_ids, labels)


def build_model(plan: LoadSpec, share: ShardSpec = WHOLE, compile: bool = False) -> CausalLM:
    """One model, or one device's share of it."""
    with without_bars():
        loaded = _read(plan, storage_dtype(plan.precision), lambda line: None)
    model = _wrap(loaded, plan, consume=True, share=share)
    if compile and share == WHOLE:  # the exact passes of several devices exchange something at each layer
        compile_stack(model)
    return model


def _load_one(plan: LoadSpec, say: Callable[[str], None]) -> tuple[CausalLM, Any]:
    loaded = _read(plan, storage_dtype(plan.precision), say)
    generation_config = loaded.generation_config
    return _wrap(loaded, plan, consume=True), generation_config


def _load_two(target: LoadSpec, drafter: LoadSpec, say: Callable[[str], None]) -> tuple[CausalLM, CausalLM, Any]:
    draft_model, _ = _load_one(drafter, say)
    target_model, generation_config = _load_one(target, say)
    return target_model, draft_model, generation_config


def _load_own(target: LoadSpec, drafter: LoadSpec, say: Callable[[str], None]) -> tuple[CausalLM, CausalLM, Any]:
    """Both from one reading of the weights, which are shared where format and device are the same."""
    same = (target.precision, target.device, None) == (drafter.precision, drafter.device, drafter.head_rows)
    if unsupported_reason(target.config) and not same:
        return _load_two(target, drafter, say)
    dtypes = {storage_dtype(target.precision), storage_dtype(drafter.precision)}
    loaded = _read(target, dtypes.pop() if len(dtypes) == 1 else torch.float32, say)
    draft_model = _wrap(loaded, target if same else drafter, consume=same)
    if not same:
        target_model = _wrap(loaded, target, consume=True)
    elif isinstance(draft_model, DecoderStack):
        target_model = DecoderStack(draft_model.weights)
    else:
        target_model = HFCausalLM(loaded, target.precision)
    return target_model, draft_model, loaded.generation_config


def _read(plan: LoadSpec, dtype: torch.dtype, say: Callable[[str], None]) -> Any:
    say(f"loading the {plan.role}, {plan.name} ({plan.precision} on {plan.spread or plan.device})")
    if isinstance(plan.spread, Spread):
        return read_spread_model(plan.source, storage_dtype(plan.precision), plan.spread)
    if isinstance(plan.spread, Ranks):
        return read_sharded_model(plan.source, storage_dtype(plan.precision))
    if unsupported_reason(plan.config):
        return read_model(plan.source, dtype, plan.device, nf4=plan.precision == "nf4")
    with translate_load_errors(plan.source, "weights"):
        streamed = stream_model(plan.source, plan.config)
    # A stack takes the weights to its device layer by layer.
    return streamed or read_model(plan.source, dtype, torch.device("cpu"))


def _wrap(loaded: Any, plan: LoadSpec, consume: bool, share: ShardSpec = WHOLE) -> CausalLM:
    if plan.whole:
        return HFCausalLM(loaded, plan.precision)
    with translate_load_errors(plan.source, "weights"):  # this is where they reach their device and format
        how = {"head_rows": plan.head_rows, "share": share, "drafter": plan.role == "drafter"}
        return DecoderStack(read_weights(loaded, plan.precision, plan.device, consume, **how))


def compile_pair(built: Built) -> None:
    """Have both models' forwards compiled. Raises ValueError for a model that runs through transformers."""
    for role, model in (("target", built.target), ("drafter", built.drafter)):
        stack = not unsupported_reason(model.config) if isinstance(model, LoadSpec) else isinstance(model, DecoderStack)
        if not stack:
            one = f"{', '.join(FAMILIES)} with full attention, a target on one device"
            raise ValueError(f"compile = True: only for {one}; not for this {role}")
        if isinstance(model, DecoderStack):  # one that runs elsewhere is compiled there
            compile_stack(model)
    built.labels["compile"] = True
