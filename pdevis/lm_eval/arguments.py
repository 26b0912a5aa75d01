"""From lm_eval's arguments, of the model and of single requests, to settings of pdevis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.lm_eval.stops import split_stops
from pdevis.util.argtypes import nearest

MODELS = (
    "drafter",
    "device",
    "target_device",
    "draft_device",
    "target_precision",
    "draft_precision",
    "draft_vocab",
    "compile",
)
RENAMED = {"draft_mode": "mode"}
OWN = ("target", "gamma", "method", "max_gen_toks", "max_length", "seed", "enable_thinking", "think_end_token")
IGNORED = ("batch_size", "max_batch_size")  # lm_eval passes them to every model; here it is always one sequence


def sort_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `load_pair`, and fields of `DraftConfig`. Raises ValueError for what is neither."""
    known = (*OWN, *MODELS, *(field.name for field in fields(DraftConfig)), *RENAMED)
    models: dict[str, Any] = {}
    draft: dict[str, Any] = {}
    for name, value in settings.items():
        if name in IGNORED or value is None:
            continue
        if name not in known:
            match = nearest(name, known)
            hint = f"did you mean {match}?" if match else f"must be one of {', '.join(known)}"
            raise ValueError(f"--model_args: unknown argument {name}; {hint}")
        (models if name in MODELS else draft)[RENAMED.get(name, name)] = value
    return models, draft


def read_request(
    given: Mapping[str, Any], number: int, base: DecodeConfig, eos_ids: tuple[int, ...], tokenizer: Any
) -> tuple[DecodeConfig, list[str]]:
    """Decoding settings, and the stop strings that are text, of a request's generation arguments.

    Args:
        given: as a task or --gen_kwargs sets them: until, max_gen_toks, do_sample, temperature, top_k, top_p.
        number: of the request; sampled answers to the same request differ.
        base: what holds where a request says nothing.

    Raises:
        ValueError: for an argument that is not known, or a value that is not allowed.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    options = dict(normalize_gen_kwargs(dict(given), base.max_new_tokens))
    stops, ids = split_stops([stop for stop in options.pop("until") if stop is not None], tokenizer)
    sampled = options.pop("do_sample")
    values = {
        "max_new_tokens": options.pop("max_gen_toks"),
        "temperature": float(options.pop("temperature", 1.0 if sampled else 0.0)),
        "top_k": int(options.pop("top_k", 0)),
        "top_p": float(options.pop("top_p", 1.0)),
    }
    if options.get("num_beams") == 1:
        del options["num_beams"]
    if options:
        allowed = "until, max_gen_toks, do_sample, temperature, top_k, top_p"
        raise ValueError(f"generation arguments {', '.join(sorted(options))}: must be some of {allowed}")
    if not sampled:
        values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    return replace(base, **values, seed=(base.seed or 0) + number, eos_ids=(*eos_ids, *ids)), stops
