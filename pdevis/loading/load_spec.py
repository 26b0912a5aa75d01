"""Plan: one model to load, and what has to be checked before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pdevis.config import RANKS
from pdevis.devices import DeviceSlot, find_device_slots
from pdevis.loading.catalog import ModelLoadError
from pdevis.loading.device_map import AUTO, Spread, parse_devices
from pdevis.loading.weight_reader import FAMILIES, unsupported_reason
from pdevis.parallel.torchrun.process_group import Ranks, start_ranks, under_torchrun
from pdevis.util.validation import check_integer

SELF = "self"


@dataclass(frozen=True)
class LoadSpec:
    """One model to load: everything that is known before its weights are read."""

    name: str
    role: str
    source: Any
    config: Any
    device: torch.device
    precision: str
    head_rows: int | None = None  # ids that the output head covers
    spread: Spread | Ranks | None = None  # over several devices, through transformers

    @property
    def whole(self) -> str | None:
        """Why this model runs through transformers; None where its sublayers can be reached."""
        return unsupported_reason(self.config) or ("a model on several devices" if self.spread else None)


def find_target(text: str | None) -> tuple[DeviceSlot, Spread | Ranks | None]:
    """Where the target runs: one place, or the first of several devices and how it is spread over them."""
    if text == RANKS:
        if not under_torchrun():
            raise ModelLoadError(
                f"target_device = {RANKS!r}: needs torchrun --nproc_per_node N, which starts the ranks"
            )
        ranks = start_ranks()
        return DeviceSlot(ranks.device), ranks
    if text is None or ("," not in text and text != AUTO):
        return find_device_slots(text, "target_device")[0], None
    found = parse_devices(text)
    return (DeviceSlot(found.devices[0]), found) if isinstance(found, Spread) else (DeviceSlot(found), None)


def check_lanes(draft_device: str | None, places: Sequence[DeviceSlot], config: Any) -> None:
    """Raise ValueError where several devices are given for a drafter that cannot be spread over them."""
    if len(places) > 1 and (reason := unsupported_reason(config)):
        raise ValueError(f"draft_device = {draft_device!r}: must be one device for {reason}")


def check_draft_vocab(draft_vocab: int | None, config: Any) -> int | None:
    """The ids that the drafter's output head is to cover. Raises ValueError where it cannot do with fewer."""
    if draft_vocab is None:
        return None
    check_integer("draft_vocab", draft_vocab, minimum=1)
    if reason := unsupported_reason(config):
        raise ValueError(f"draft_vocab = {draft_vocab!r}: must be left out for {reason}")
    return min(draft_vocab, config.vocab_size)


def fit_precision(asked: str, precision: str, config: Any, flag: str, spread: bool = False) -> str:
    """The resolved weight format, within what the architecture and the number of devices allow."""
    if spread and precision == "nf4":
        raise ValueError(f"{flag} = 'nf4': not for a model on several devices; use bfloat16")
    if precision not in ("packed", "int8") or not (spread or unsupported_reason(config)):
        return precision
    if asked == "auto":
        return "float32"
    raise ValueError(
        f"{flag} = {asked!r}: only for {', '.join(FAMILIES)} with full attention, "
        f"not for {'a model on several devices' if spread else unsupported_reason(config)}; use float32 or bfloat16"
    )
