"""The run of `python -m pdevis.verify`: decode, compare with plain decoding, and say what differs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pdevis.benchmarks.runs.lossless_check import first_difference
from pdevis.benchmarks.speed.baselines import (
    SAME_NUMBERS,
    load_transformers_target,
    transformers_dtype,
    transformers_generate,
)
from pdevis.cli import is_main_rank, pair_arguments
from pdevis.config import DecodeConfig
from pdevis.pair import SpeculativePair, load_pair
from pdevis.util.console import make_console, print_lines, progress_on_stderr
from pdevis.util.labels import format_models
from pdevis.util.prompts import PROMPTS

EQUAL, REAL_DIFFERENCE, NEAR_TIES = 0, 1, 3  # exit codes
SPECULATIVE, TRANSFORMERS = "speculative decoding", "transformers' generate"

Decode = Callable[[list[int]], list[int]]


@dataclass(frozen=True)
class Parting:
    """A place where a decoder's text is not that of plain decoding."""

    prompt: int  # from 1
    decoder: str
    difference: dict[str, Any]  # as `first_difference` returns it

    def describe(self, tokenizer: Any) -> str:
        """Return a line with the position (from 1), both tokens and the distance of their logits."""
        found = self.difference
        tokens = [
            "no token" if token is None else f"{tokenizer.decode([token])!r} ({token})"
            for token in (found["target_id"], found["speculative_id"])
        ]
        gap, kind = found["logit_gap"], "a near-tie" if found["near_tie"] else "a real difference"
        apart = "logits cannot be compared" if gap is None else f"logits {gap:.2g} apart"
        return (
            f"prompt {self.prompt}, token {found['position'] + 1}: plain decoding {tokens[0]}, {self.decoder} "
            f"{tokens[1]}: {apart}, {kind}"
        )


def run_verify(args: argparse.Namespace) -> int:
    """Verify with the flags of `python -m pdevis.verify`; returns the exit code.

    Raises:
        ValueError, OSError: a user's mistake, or models that cannot be loaded, in one line.
    """
    if args.prompts > len(PROMPTS):
        raise ValueError(f"--prompts: {args.prompts} must be at most {len(PROMPTS)}, the built-in prompts")
    with progress_on_stderr("loading") as on_progress:
        pair = load_pair(**pair_arguments(args), on_progress=on_progress)
        if not is_main_rank(args):
            return EQUAL
        decoders = _decoders(pair, args, on_progress)
        partings = compare(pair, decoders, prompts=args.prompts, length=args.length, on_progress=on_progress)
    lines = [parting.describe(pair.tokenizer) for parting in partings]
    conclusion, code = conclude(partings, [*decoders], prompts=args.prompts, length=args.length)
    print_lines(make_console(), [*format_models(pair.labels), *lines, conclusion])
    return code


def _decoders(pair: SpeculativePair, args: argparse.Namespace, on_progress: Callable[[str], None]) -> dict[str, Decode]:
    """Return the decoders to compare with plain decoding, by name."""
    config = DecodeConfig(max_new_tokens=args.length, gamma=args.gamma, eos_ids=(), overlap=args.overlap)
    decoders: dict[str, Decode] = {SPECULATIVE: lambda ids: pair.generate(ids, config).ids}
    if args.transformers:
        dtype = transformers_dtype(pair.target.device)
        precision = pair.labels["target_precision"]
        if precision not in SAME_NUMBERS[dtype]:
            allowed = " or ".join(SAME_NUMBERS[dtype])
            raise ValueError(
                f"--transformers: needs --target_precision {allowed}, not {precision}: other weights, other text"
            )
        on_progress("loading the target again, for transformers")
        decode = transformers_generate(load_transformers_target(args.target_model, pair.target.device)[0])
        decoders[TRANSFORMERS] = lambda ids: decode(ids, args.length)[0]
    return decoders


def compare(
    pair: SpeculativePair,
    decoders: dict[str, Decode],
    *,
    prompts: int,
    length: int,
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[Parting]:
    """Decode built-in prompts plainly and with each decoder; return where their texts first part, prompt by prompt.

    Args:
        pair: its target is the reference.
        decoders: prompt ids -> new ids, by name.
        prompts: number of prompts.
        length: new tokens after each; EOS does not end a text.
        on_progress: called with a line before each prompt.
    """
    partings = []
    for number, text in enumerate(PROMPTS[:prompts], 1):
        on_progress(f"prompt {number} of {prompts}")
        ids = pair.encode(text, chat=bool(pair.tokenizer.chat_template))
        plain = pair.generate(ids, DecodeConfig(max_new_tokens=length, eos_ids=()), "target").ids
        for name, decode in decoders.items():
            if difference := first_difference(pair, ids, plain, decode(ids)):
                partings.append(Parting(number, name, difference))
    return partings


def conclude(partings: list[Parting], decoders: list[str], *, prompts: int, length: int) -> tuple[str, int]:
    """Return the last line of the report, and the exit code."""
    compared = f"{prompts} prompts × {length} tokens"
    if not partings:
        return f"equal: {compared}, {' and '.join(decoders)} wrote what plain decoding wrote", EQUAL
    real = [parting for parting in partings if not parting.difference["near_tie"]]
    total = prompts * len(decoders)
    if real:
        return (
            f"real differences: {len(real)} of {total} texts are not those of plain decoding ({compared})",
            REAL_DIFFERENCE,
        )
    return (
        f"near-ties only: {len(partings)} of {total} texts part where two tokens are equally good ({compared})",
        NEAR_TIES,
    )
