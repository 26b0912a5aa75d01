"""From the settings of a generation to what the decode loop works with: processors, EOS ids, ends at stop strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from pdevis.config import DecodeConfig
from pdevis.controls.stop_strings import StopStrings, split_special
from pdevis.models.causal_lm import CausalLM
from pdevis.reasoning.reasoning_stream import ReasoningStream, prompt_opening
from pdevis.util.argtypes import nearest
from pdevis.util.validation import check_kind


def given_config(config: DecodeConfig | None, changes: Mapping[str, Any], defaults: DecodeConfig) -> DecodeConfig:
    """Return the settings of a generation: `config`, or the defaults if it is None, with some fields changed.

    Raises:
        ValueError: `config` is something else, `changes` names a field that does not exist, or a value is not allowed.
    """
    if config is not None:
        check_kind("config", config, DecodeConfig)
    known = [item.name for item in fields(DecodeConfig)]
    for name, value in changes.items():
        if name not in known:
            match = nearest(name, known)
            hint = f"did you mean {match}?" if match else f"must be one of {', '.join(known)}"
            raise ValueError(f"{name} = {value!r}: no setting of a generation; {hint}")
    return replace(defaults if config is None else config, **changes)


def resolve_controls(
    config: DecodeConfig, tokenizer: Any, *, eos_ids: tuple[int, ...], prompt: Sequence[int], model: CausalLM
) -> tuple[DecodeConfig, Callable[[int], bool] | None]:
    """Return settings with `eos_ids` and all processors, and what finds stop strings (None: there are none).

    Args:
        config: as the user gave it.
        tokenizer: of the model.
        eos_ids: those of the target, if the settings name none.
        prompt: its token ids.
        model: that writes the text.

    Raises:
        ValueError: an id outside the vocabulary, or a value that transformers refuses.
    """
    for name, ids in (("suppress_tokens", config.suppress_tokens), ("logit_bias", config.logit_bias)):
        for token in ids:
            if token >= model.vocab_size:
                raise ValueError(f"{name} has id {token}: must be below {model.vocab_size}")
    config = replace(config, eos_ids=eos_ids if config.eos_ids is None else tuple(config.eos_ids))
    ends_text = None
    if config.stop:
        texts, special = split_special(config.stop, tokenizer)
        config = replace(config, eos_ids=(*config.eos_ids, *special))
        ends_text = StopStrings(texts, tokenizer, _thoughts(config, tokenizer, prompt)).add if texts else None
    if config.processes_logits:
        from pdevis.controls.processors import make_processors  # most generations need none of it

        made = make_processors(config, prompt_tokens=len(prompt))
        config = replace(config, processors=made)
    return config, ends_text


def _thoughts(config: DecodeConfig, tokenizer: Any, prompt: Sequence[int]) -> ReasoningStream | None:
    """Return what divides the text for stop strings; None if they count everywhere."""
    if config.stop_after is not None:
        return ReasoningStream(end=config.stop_after, is_thinking=True)
    return None if config.stop_in_thoughts else ReasoningStream(prompt_opening(tokenizer, prompt))
