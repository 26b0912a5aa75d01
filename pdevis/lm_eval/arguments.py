"""Turn lm_eval's arguments, of the model and of single requests, into settings of pdevis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.util.argtypes import nearest

PAIR_ARGUMENTS = (  # of `load_pair`
    "drafter",
    "device",
    "target_device",
    "draft_device",
    "target_precision",
    "draft_precision",
    "draft_vocab",
    "graphs",
    "compile",
    "sampling",
    "thinking",
)
ADAPTER_ARGUMENTS = (
    "target",
    "gamma",
    "method",
    "max_gen_toks",
    "max_length",
    "seed",
    "enable_thinking",
    "think_end_token",
)
SAMPLING_ARGUMENTS = ("do_sample", "temperature", "top_k", "top_p")  # of a request
RENAMED = {"draft_mode": "mode"}
IGNORED = ("batch_size", "max_batch_size")  # lm_eval passes them to every model; the batch size here is always 1


def sort_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide settings into arguments of `load_pair` and fields of `DraftConfig`.

    Raises:
        ValueError: for a setting that is neither.
    """
    known = (*ADAPTER_ARGUMENTS, *PAIR_ARGUMENTS, *(field.name for field in fields(DraftConfig)), *RENAMED)
    load_options: dict[str, Any] = {}
    draft: dict[str, Any] = {}
    for name, value in settings.items():
        if name in IGNORED or value is None:
            continue
        if name not in known:
            match = nearest(name, known)
            hint = f"did you mean {match}?" if match else f"must be one of {', '.join(known)}"
            raise ValueError(f"--model_args: unknown argument {name}; {hint}")
        (load_options if name in PAIR_ARGUMENTS else draft)[RENAMED.get(name, name)] = value
    return load_options, draft


def read_request(
    arguments: Mapping[str, Any], *, number: int, base: DecodeConfig, think_end: str | None = None
) -> DecodeConfig:
    """Return the decoding settings of a request, its stop strings among them.

    Args:
        arguments: generation arguments of a task or of --gen_kwargs: until, max_gen_toks, do_sample, temperature,
            top_k, top_p.
        number: of the request, part of its seed, so that sampled answers to equal requests differ.
        base: settings that a request does not name; it decides about sampling if the request says nothing of it.
        think_end: the text that ends each thought; None: stop strings count after thoughts that have a known tag.

    Raises:
        ValueError: for an argument that is not known, or a value that is not allowed.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    options = dict(normalize_gen_kwargs(dict(arguments), base.max_new_tokens))
    stops = tuple(stop for stop in options.pop("until") if stop)
    sampled = options.pop("do_sample")
    values = {
        "max_new_tokens": options.pop("max_gen_toks"),
        "temperature": float(options.pop("temperature", (base.temperature or 1.0) if sampled else 0.0)),
        "top_k": int(options.pop("top_k", base.top_k)),
        "top_p": float(options.pop("top_p", base.top_p)),
    }
    if not any(name in arguments for name in SAMPLING_ARGUMENTS):
        values |= {name: getattr(base, name) for name in ("temperature", "top_k", "top_p")}
    elif not sampled:
        values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    if options.get("num_beams") == 1:
        del options["num_beams"]
    if options:
        allowed = "until, max_gen_toks, do_sample, temperature, top_k, top_p"
        raise ValueError(f"generation arguments {', '.join(sorted(options))}: must be some of {allowed}")
    values |= {"stop": (*base.stop, *stops), "stop_in_thoughts": False, "stop_after": think_end}
    return replace(base, **values, seed=(base.seed or 0) + number)
