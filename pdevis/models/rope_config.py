"""Rotary settings of a transformers config, and the context that a model has with them."""

from __future__ import annotations

from typing import Any

FACTOR_TYPES = ("linear", "dynamic", "yarn")  # rope types that make the context longer by a factor


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """Return the rotary settings of a transformers config: one, or one per kind of layer."""
    settings = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [value for value in settings.values() if isinstance(value, dict)]
    return kinds or [settings]


def native_context(config: Any) -> int | None:
    """Return the number of tokens that a model's positions cover; None if there is no limit.

    With YaRN, linear or dynamic scaling switched on in the config, it is the factor times the length of pre-training,
    even if `max_position_embeddings` still is that length, as in the instructions of model cards.
    """
    text = config.get_text_config(decoder=True)
    context, settings = getattr(text, "max_position_embeddings", None), rope_settings(config)
    if not context or len(settings) > 1 or settings[0].get("rope_type") not in FACTOR_TYPES:
        return context
    original = settings[0].get("original_max_position_embeddings") or context
    return max(context, int(original * (settings[0].get("factor") or 1)))
