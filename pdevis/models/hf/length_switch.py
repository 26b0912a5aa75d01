"""Rotary embeddings of transformers whose frequencies depend on the length of the text.

`generate` computes the prompt in one forward, with the frequencies of the prompt's length, and then one token per
forward. To write the same text, forwards must be divided in the same way near and beyond the switch:

    longrope   one set of frequencies up to the length of pre-training, another one beyond; some models then recompute
               the whole text, others keep the old entries
    dynamic    beyond that length the frequencies change with every token, so each token needs its own forward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from pdevis.models.rope_config import rope_settings

LONGROPE, DYNAMIC = "longrope", "dynamic"


@dataclass(frozen=True)
class LengthSwitch:
    """A length at which a model's rotary frequencies change.

    Args:
        length: the last number of tokens for which the original frequencies hold.
        kind: LONGROPE or DYNAMIC.
        restarts: the model recomputes its whole cache with the first token beyond the length.
    """

    length: int
    kind: str
    restarts: bool

    def is_single(self, position: int) -> bool:
        """True if the token at this position needs its own forward."""
        return self.kind == DYNAMIC and position >= self.length

    def set_length(self, model: Any, length: int) -> None:
        """Give the rotary embeddings the state that they have after `length` tokens: they remember the longest text."""
        if self.kind != DYNAMIC:
            return
        for module in model.modules():
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                _set_rotary_length(module, name.removesuffix("max_seq_len_cached"), length)


def _set_rotary_length(module: Any, prefix: str, length: int) -> None:
    original = getattr(module, "original_max_seq_len", None)
    frequencies = getattr(module, f"{prefix}original_inv_freq", None)
    if original is None or frequencies is None:
        return
    setattr(module, f"{prefix}max_seq_len_cached", max(length, original))
    if length <= original:
        buffer = getattr(module, f"{prefix}inv_freq")
        module.register_buffer(f"{prefix}inv_freq", frequencies.to(buffer.device), persistent=False)


def find_length_switch(model: Any) -> LengthSwitch | None:
    """Return the length at which the model's rotary frequencies change; None if they do not."""
    config = model.config.get_text_config(decoder=True)
    switches = []
    for settings in rope_settings(config):
        kind = settings.get("rope_type", "default")
        if LONGROPE in kind:
            length = settings.get("original_max_position_embeddings") or config.max_position_embeddings
            switches.append(LengthSwitch(length, LONGROPE, _restarts(model, length)))
        elif DYNAMIC in kind:
            switches.append(LengthSwitch(config.max_position_embeddings, DYNAMIC, restarts=False))
    return min(switches, key=lambda switch: switch.length) if switches else None


def _restarts(model: Any, length: int) -> bool:
    """Return True if the model, asked for the inputs of the first token beyond the switch, drops its cache."""
    cache, entry = DynamicCache(), torch.zeros(1, 1, length, 1, device=model.device)
    cache.update(entry, entry, 0)
    ids = torch.zeros(1, length + 1, dtype=torch.long, device=model.device)
    inputs = model.prepare_inputs_for_generation(ids, past_key_values=cache, next_sequence_length=1, use_cache=True)
    return inputs.get("past_key_values") is None
