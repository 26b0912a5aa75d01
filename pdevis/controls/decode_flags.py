"""The flags of one generation, and their conversion to a `DecodeConfig`.

    add_decode_flags(parser)
    args = parser.parse_args()
    config = decode_config(args)
    pair = load_pair(**pair_arguments(args))
    config = fill_in(config, given_fields(args), pair.defaults)  # --sampling model

A flag whose value the model's authors may have chosen has no default, so that its absence shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pdevis.config import MODEL_FIELDS, PROCESSING, SAMPLING, DecodeConfig
from pdevis.util.argtypes import choice, comma_list, gamma_value, id_numbers, settings_field


def add_decode_flags(
    parser: argparse.ArgumentParser, length: str = "--length", max_new_tokens: int = DecodeConfig.max_new_tokens
) -> None:
    """Add the flags of one generation.

    Args:
        length: this script's name of the flag for `max_new_tokens`.
    """
    group = parser.add_argument_group("decoding")
    base = replace(DecodeConfig(), max_new_tokens=max_new_tokens)

    def add(flag: str, convert: Callable[[str], Any], *, metavar: str, text: str, field: str | None = None) -> None:
        name = field or flag[2:]
        argtype, text = settings_field(DecodeConfig, name, convert), text.replace("DEFAULT", str(getattr(base, name)))
        default = argparse.SUPPRESS if name in MODEL_FIELDS else getattr(base, name)
        group.add_argument(flag, dest=name, type=argtype, default=default, metavar=metavar, help=text)

    add("--gamma", gamma_value, metavar="N", text="draft tokens per round, or auto (default: DEFAULT)")
    add(length, int, metavar="N", text="limit on new tokens (default: DEFAULT)", field="max_new_tokens")
    add("--temperature", float, metavar="X", text="0 is greedy (default: DEFAULT)")
    add("--top_k", int, metavar="N", text="sample from the k most probable; 0: all (default: DEFAULT)")
    add("--top_p", float, metavar="X", text="sample from this probability mass; 1: all (default: DEFAULT)")
    add("--seed", int, metavar="N", text="of the random numbers (default: a fresh one)")
    text = "keep tokens of at least this part of the largest probability; 0: all (default: DEFAULT)"
    add("--min_p", float, metavar="X", text=text)
    text = "divide the logits of tokens that prompt or text have; 1: none (default: DEFAULT)"
    add("--repetition_penalty", float, metavar="X", text=text)
    text = "subtract from the logits of tokens that the text has (default: DEFAULT)"
    add("--presence_penalty", float, metavar="X", text=text)
    text = "subtract as often as the text has the token (default: DEFAULT)"
    add("--frequency_penalty", float, metavar="X", text=text)
    add("--min_new_tokens", int, metavar="N", text="write no EOS before so many tokens (default: DEFAULT)")
    text = "add to the logits of some ids, as in 50:-2,17:1.5"
    add("--logit_bias", id_numbers, metavar="ID:X,…", text=text)
    add("--suppress_tokens", comma_list(int), metavar="LIST", text="ids that are never written")
    text = "a string that ends the text; may be given several times"
    group.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT", help=text)
    text = "default, or model: of flags above that are not given, the values in the target's generation config"
    group.add_argument("--sampling", type=choice(*SAMPLING), metavar="WHOSE", help=text)


def decode_config(args: argparse.Namespace, **changes: Any) -> DecodeConfig:
    """Return the decoding settings of the flags; `changes` are further fields of `DecodeConfig`."""
    names = ("gamma", "max_new_tokens", "seed", *MODEL_FIELDS, *PROCESSING)
    values = {name: value for name, value in vars(args).items() if name in names}
    if "stop" in values:
        values["stop"] = tuple(values["stop"])
    return DecodeConfig(**{"overlap": getattr(args, "overlap", False)} | values | changes)


def given_fields(args: argparse.Namespace) -> frozenset[str]:
    """Return the `MODEL_FIELDS` that the flags give."""
    return frozenset(MODEL_FIELDS) & vars(args).keys()
