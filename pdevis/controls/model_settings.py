"""The settings that a model's authors chose: its generation config as fields of `DecodeConfig`, and what is left of it.

    settings = read_model_settings(generation_config, eos_ids=(2,))
    settings.values  # {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    settings.notes("qwen-8b", sampling="default")

They are used if the user asks for it (`--sampling model`, `load_pair(sampling="model")`), else a note names them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pdevis.config import MODEL, MODEL_FIELDS, DecodeConfig
from pdevis.util.files import parse_json
from pdevis.util.validation import ModelLoadError

MAX_VALUE_SHOWN = 60  # letters
# settings of `generate`, each with the value that changes nothing, besides None
NEUTRAL_SETTINGS: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "token_healing": False,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "dola_layers": None,
}
# those that `generate` reads only if `do_sample` is True
NEUTRAL_SAMPLING: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
NOTHING = (None, [], {})  # [] and {} are empty lists of tokens
SAME_NAME = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")


@dataclass(frozen=True)
class ModelSettings:
    """Settings of a generation config that change the text of transformers' `generate`.

    Args:
        values: fields of `DecodeConfig`, some of `MODEL_FIELDS`.
        supported: the settings that became these fields, by their names in the generation config.
        unsupported: those for which there is no field.
    """

    values: dict[str, Any] = field(default_factory=dict)
    supported: dict[str, Any] = field(default_factory=dict)
    unsupported: dict[str, Any] = field(default_factory=dict)

    def as_config(self, name: str) -> DecodeConfig:
        """Return the values as settings. Raises ModelLoadError, with the model's `name`, if one is not allowed."""
        try:
            return DecodeConfig(**self.values)
        except ValueError as error:
            raise ModelLoadError(f"sampling = {MODEL!r}: the generation config of {name}: {error}") from None

    def as_json(self) -> dict[str, Any]:
        """Return the values as they are after writing and reading JSON."""
        return parse_json(json.dumps(self.values))

    def notes(self, name: str, sampling: str) -> list[str]:
        """Return lines for the user: which settings of the model `name` are used, and which are not."""
        supported, unsupported = _list(self.supported), _list(self.unsupported)
        lines = []
        if sampling == MODEL and supported:
            lines.append(f"using {supported} of the generation config of {name}, except for settings that are given")
        elif sampling == MODEL:
            lines.append(f"note: the generation config of {name} sets nothing that sampling = {MODEL!r} can use")
        elif supported:
            lines.append(f"note: the generation config of {name} sets {supported}, which --sampling model applies")
        if unsupported:
            lines.append(f"note: the generation config of {name} sets {unsupported}, which pdevis does not apply")
        return lines


def read_model_settings(generation_config: Any, eos_ids: Collection[int] = ()) -> ModelSettings:
    """Return the settings of a generation config (None: none); limits on the length are not among them.

    Args:
        generation_config: of transformers.
        eos_ids: ids that end the text; `bad_words_ids` does not forbid them, as in `generate`.
    """
    neutral = (NEUTRAL_SAMPLING if getattr(generation_config, "do_sample", False) else {}) | NEUTRAL_SETTINGS
    found = {name: getattr(generation_config, name, None) for name in neutral}
    found = {name: value for name, value in found.items() if value not in (*NOTHING, neutral[name])}
    settings = ModelSettings()
    for name, value in found.items():
        try:
            used, rest = _convert(name, value, values=settings.values, eos_ids=eos_ids)
        except (TypeError, ValueError, LookupError):  # of another form than transformers documents
            used, rest = None, value
        if used not in NOTHING:
            settings.supported[name] = used
        if rest not in NOTHING:
            settings.unsupported[name] = rest
    return settings


def _convert(name: str, value: Any, *, values: dict[str, Any], eos_ids: Collection[int]) -> tuple[Any, Any]:
    """Add a setting to `values`; return the part of it that became a field, and the part for which there is none."""
    if name == "do_sample":
        values["temperature"] = 1.0  # transformers' default; the next setting may be another one
    elif name in SAME_NAME:
        values[name] = value
    elif name == "stop_strings":
        values["stop"] = (value,) if isinstance(value, str) else tuple(value)
    elif name == "suppress_tokens":
        values[name] = tuple(value)
    elif name == "bad_words_ids":
        single = [ids for ids in value if len(ids) == 1]
        forbidden = tuple(ids[0] for ids in single if ids[0] not in eos_ids)
        values["suppress_tokens"] = (*values.get("suppress_tokens", ()), *forbidden)
        return single, [ids for ids in value if len(ids) > 1]
    elif name == "sequence_bias":
        biases = dict(value) if isinstance(value, Mapping) else {tuple(ids): bias for ids, bias in value}
        single = {ids: bias for ids, bias in biases.items() if len(ids) == 1}
        values["logit_bias"] = {ids[0]: bias for ids, bias in single.items()}
        return single, {ids: bias for ids, bias in biases.items() if len(ids) > 1}
    else:
        return None, value
    return value, None


def _list(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_shorten(value)}" for name, value in settings.items())


def _shorten(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_VALUE_SHOWN else f"{text[:MAX_VALUE_SHOWN]}…"


def fill_in(config: DecodeConfig, given: Collection[str], defaults: DecodeConfig) -> DecodeConfig:
    """Return the settings with those of a pair for the `MODEL_FIELDS` that the user has not given.

    Args:
        config: the user's settings.
        given: names of the fields that the user gave.
        defaults: `SpeculativePair.defaults`.
    """
    return replace(config, **{name: getattr(defaults, name) for name in MODEL_FIELDS if name not in given})
