"""Speed of several decoders on the same prompts, in one process and in turn: a drifting machine hurts all alike.

Every contestant writes the same number of tokens behind the same prompt (EOS is ignored). All of them take their turn
on one prompt before the next one starts, in an order that changes from prompt to prompt.

    python evaluation/speed/evaluate_speed.py --gammas 4,auto
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.util.argtypes import one_line
from pdevis.util.interleaving import interleaved_order
from pdevis.util.labels import format_rule

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

PLAIN = "pdevis, target alone"
WARM_UP_TOKENS = 8
Run = Callable[[list[int], int], tuple[list[int], DecodeStats | None]]


@dataclass(frozen=True)
class Contestant:
    """A decoder to be timed.

    Args:
        name: unique in a run.
        run: (prompt ids, new tokens) -> the new ids and, of ours, statistics.
        kind: "plain" is the reference of the others; "peer" is not ours.
        gamma: draft tokens per round, where they are given.
        compared: whether its greedy ids must be those of plain decoding.
        note: why not, where they need not.
        draft_device: where the drafter runs, where several places are compared.
        overlap: the name of the same decoder without drafting ahead; None: it does not draft ahead.
    """

    name: str
    run: Run
    kind: Literal["plain", "speculative", "peer"] = "peer"
    gamma: int | str | None = None
    compared: bool = True
    note: str | None = None
    draft_device: str | None = None
    overlap: str | None = None

    def describe(self) -> dict[str, Any]:
        """All but the name and the function, ready for JSON."""
        names = ("kind", "gamma", "compared", "note", "draft_device", "overlap")
        return {name: getattr(self, name) for name in names}


def plain(pair: SpeculativePair) -> Contestant:
    """pdevis decoding with the target alone, greedy: what the others are compared with."""

    def run(ids: list[int], length: int) -> tuple[list[int], DecodeStats]:
        made = pair.generate(ids, DecodeConfig(max_new_tokens=length, eos_ids=()), "target")
        return made.ids, made.stats

    return Contestant(PLAIN, run, "plain")


def speculative(
    pair: SpeculativePair, draft: DraftConfig, gamma: int | str, device: str | None = None, overlap: bool = False
) -> Contestant:
    """pdevis' speculative decoding under the given drafting settings, greedy. Leaves the pair configured so.

    `device` says where the pair's drafter runs, where that is to be in the name.
    """
    pair.configure(draft)

    def run(ids: list[int], length: int) -> tuple[list[int], DecodeStats]:
        if pair.draft != draft:  # what γ = "auto" has learnt of a drafter stays with it
            pair.configure(draft)
        config = DecodeConfig(max_new_tokens=length, gamma=gamma, eos_ids=(), overlap=overlap)
        made = pair.generate(ids, config, "speculative")
        return made.ids, made.stats

    name = f"pdevis, {format_rule(draft, 'full', pair.mode)}, γ={gamma}" + (f" on {device}" if device else "")
    more = {"draft_device": device, "overlap": name if overlap else None}
    return Contestant(name + ", overlap" * overlap, run, "speculative", gamma, **more)


def warm_up(contestants: Sequence[Contestant], ids: list[int]) -> tuple[list[Contestant], dict[str, str]]:
    """Run each on a few tokens; returns those that work, and why a peer does not. Our own errors are raised."""
    kept, left_out = [], {}
    for contestant in contestants:
        try:
            contestant.run(ids, WARM_UP_TOKENS)
            kept.append(contestant)
        except Exception as error:
            if contestant.kind != "peer":
                raise
            left_out[contestant.name] = f"it fails: {type(error).__name__}: {one_line(error)[:200]}"
    return kept, left_out


def measure(contestants: Sequence[Contestant], ids: list[int], length: int, number: int) -> dict[str, dict[str, Any]]:
    """Time every contestant on one prompt (ids), `length` new tokens each.

    Returns:
        By name: the contestant's description, `seconds` (prompt included), `ids`, and of ours `stats`.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in interleaved_order(len(contestants), number):
        contestant = contestants[place]
        begin = time.perf_counter()
        made, stats = contestant.run(ids, length)
        seconds = time.perf_counter() - begin
        measured = {"seconds": seconds, "ids": made, "stats": asdict(stats) if stats else None}
        found[contestant.name] = contestant.describe() | measured
    return {contestant.name: found[contestant.name] for contestant in contestants}
