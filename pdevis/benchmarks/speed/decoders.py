"""The decoders of the speed comparison, the prompts that they continue, and the timing.

Its one idea: measurements are interleaved, so that a machine whose speed drifts affects all decoders alike. Every
decoder writes the same number of tokens after the same prompt (EOS is ignored). All of them run on one prompt before
the next one starts, in an order that changes from prompt to prompt.

    decoders = [plain(pair), speculative(pair, DraftConfig(mode="skip"), gamma=4)]
    measured = measure(decoders, pair.encode("Why is the sky blue?"), length=64, prompt_number=0)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pdevis.benchmarks.tasks.specbench import SpecBench
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats
from pdevis.util.argtypes import one_line
from pdevis.util.labels import format_rule
from pdevis.util.prompts import PROMPTS, measurement_order

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

PLAIN = "pdevis, target alone"
WARM_UP_TOKENS = 8
SYNTHETIC = "SYNTHETIC"  # marks decoders whose acceptance is drawn
# (prompt ids, number of new tokens) -> the new ids and, from pdevis, statistics
DecodeFunction = Callable[[list[int], int], tuple[list[int], DecodeStats | None]]


@dataclass(frozen=True)
class Decoder:
    """A decoder to be timed.

    Args:
        name: unique in a run.
        decode: the function that is timed.
        kind: "plain" is the reference of the others, "speculative" is pdevis too, "peer" is another library's.
        gamma: draft tokens per round, if the decoder was given a number.
        compared: True if its greedy ids must be those of plain decoding.
        note: the reason if they need not be.
        draft_device: device of the drafter, if several are compared.
        overlap: name of the same decoder without drafting ahead; None: it does not draft ahead.
        prepare: called before `decode`, and not timed.
    """

    name: str
    decode: DecodeFunction
    kind: Literal["plain", "speculative", "peer"] = "peer"
    gamma: int | str | None = None
    compared: bool = True
    note: str | None = None
    draft_device: str | None = None
    overlap: str | None = None
    prepare: Callable[[], None] = lambda: None

    def describe(self) -> dict[str, Any]:
        """Return all fields except name and function, ready for JSON."""
        names = ("kind", "gamma", "compared", "note", "draft_device", "overlap")
        return {name: getattr(self, name) for name in names}


@dataclass
class DecoderSet:
    """Decoders that can be measured, and the reason for each one that cannot, by name."""

    decoders: list[Decoder] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def plain(pair: SpeculativePair) -> Decoder:
    """Return greedy decoding with the target alone, the reference of all other decoders."""

    def decode(ids: list[int], length: int) -> tuple[list[int], DecodeStats]:
        generation = pair.generate(ids, DecodeConfig(max_new_tokens=length, eos_ids=()), "target")
        return generation.ids, generation.stats

    return Decoder(PLAIN, decode, "plain")


def speculative(
    pair: SpeculativePair,
    draft: DraftConfig,
    *,
    gamma: int | str,
    device: str | None = None,
    overlap: bool = False,
    acceptance: float | None = None,
) -> Decoder:
    """Return greedy speculative decoding under the given drafting settings. Leaves the pair configured so.

    Args:
        pair: the models.
        draft: how the drafter's layers run.
        gamma: draft tokens per round, or "auto".
        device: device list of the pair's drafter, if it is to be in the name.
        overlap: draft ahead while the target verifies.
        acceptance: draw the acceptance with this probability (benchmarks/synthetic.py); None: real.
    """
    from pdevis.benchmarks.synthetic import drawn_acceptance  # imports torch, which --help does not need

    pair.configure(draft)

    def prepare() -> None:
        if pair.draft != draft:  # configure() would drop what γ = "auto" has learnt about this drafter
            pair.configure(draft)

    def decode(ids: list[int], length: int) -> tuple[list[int], DecodeStats]:
        config = DecodeConfig(max_new_tokens=length, gamma=gamma, eos_ids=(), overlap=overlap)
        with nullcontext() if acceptance is None else drawn_acceptance(pair, acceptance):
            generation = pair.generate(ids, config, "speculative")
        return generation.ids, generation.stats

    name = f"pdevis, {format_rule(draft, 'full', pair.mode, pair.serial_layers())}, γ={gamma}" + (
        f" on {device}" if device else ""
    )
    if acceptance is not None:
        name = f"{name}, {SYNTHETIC} β={acceptance:g}"
    decoder = Decoder(name, decode, "speculative", gamma=gamma, draft_device=device, prepare=prepare)
    if acceptance is not None:
        decoder = replace(decoder, compared=False, note="synthetic acceptance: ids not compared")
    return replace(decoder, name=f"{name}, overlap", overlap=name) if overlap else decoder


def pairs_by_device(pair: SpeculativePair, device_lists: Sequence[str]) -> list[tuple[str | None, SpeculativePair]]:
    """Return (device list, pair): the pair itself for the first list, then the same target with another drafter."""
    if not device_lists:
        return [(None, pair)]
    return [(device_lists[0], pair), *((devices, _with_drafter_on(pair, devices)) for devices in device_lists[1:])]


def _with_drafter_on(pair: SpeculativePair, devices: str) -> SpeculativePair:
    from pdevis.devices import find_device_slots
    from pdevis.pair import SpeculativePair

    if not pair.workers:
        raise ValueError("--draft_devices: several device lists need a drafter in separate processes")
    workers = pair.workers.respawn_on(find_device_slots(devices, "draft_devices"))
    labels = pair.labels | {"draft_device": devices}
    return SpeculativePair(pair.target, workers, pair.tokenizer, pair.eos_ids, pair.draft, labels, pair.profile)


def warm_up(decoders: Sequence[Decoder], ids: list[int]) -> DecoderSet:
    """Run each decoder on a few tokens, and leave out the baselines that fail. Errors of pdevis are raised."""
    working = DecoderSet()
    for decoder in decoders:
        try:
            decoder.prepare()
            decoder.decode(ids, WARM_UP_TOKENS)
        except Exception as error:
            if decoder.kind != "peer":
                raise
            working.left_out[decoder.name] = f"it fails: {type(error).__name__}: {one_line(error)[:200]}"
        else:
            working.decoders.append(decoder)
    return working


def measure(
    decoders: Sequence[Decoder], ids: list[int], *, length: int, prompt_number: int
) -> dict[str, dict[str, Any]]:
    """Time every decoder on one prompt.

    Args:
        decoders: in the order of the result.
        ids: the prompt.
        length: new tokens of each.
        prompt_number: determines the order of the measurements.

    Returns:
        By name: the decoder's description, `seconds` (prompt included), `ids`, and `stats` of pdevis' decoders.
    """
    measured: dict[str, dict[str, Any]] = {}
    for index in measurement_order(len(decoders), prompt_number):
        decoder = decoders[index]
        decoder.prepare()
        begin = time.perf_counter()
        new_ids, stats = decoder.decode(ids, length)
        seconds = time.perf_counter() - begin
        result = {"seconds": seconds, "ids": new_ids, "stats": asdict(stats) if stats else None}
        measured[decoder.name] = decoder.describe() | result
    return {decoder.name: measured[decoder.name] for decoder in decoders}


@dataclass(frozen=True)
class SpeedPrompt:
    """A text to continue, with its category and question if it is from a SpecBench file."""

    text: str
    category: str | None = None
    question_id: int | str | None = None


def builtin_prompts(count: int) -> list[SpeedPrompt]:
    """Return the first `count` built-in prompts. Raises ValueError if there are fewer."""
    if count > len(PROMPTS):
        raise ValueError(f"--prompts: {count} must be at most {len(PROMPTS)}, the built-in prompts")
    return [SpeedPrompt(text) for text in PROMPTS[:count]]


def specbench_prompts(path: Path, *, categories: Sequence[str] | None, count: int) -> list[SpeedPrompt]:
    """Return the first turns of questions of a SpecBench file, categories interleaved.

    Args:
        path: JSON lines or a JSON array.
        categories: those to use; None: all of the file.
        count: number of prompts, at most.

    Raises:
        ValueError: for a file that is broken or missing, or a category that it does not have.
    """
    groups: dict[str, list[SpeedPrompt]] = {}
    for item in SpecBench().load(path):
        prompt = SpeedPrompt(item["turns"][0], item["category"], item["question_id"])
        groups.setdefault(item["category"], []).append(prompt)
    wanted = list(groups) if categories is None else list(dict.fromkeys(categories))
    for name in wanted:
        if name not in groups:
            raise ValueError(f"--categories: {name!r} must be among {', '.join(groups)}")
    rows = zip_longest(*(groups[name] for name in wanted))
    return [prompt for prompt in chain.from_iterable(rows) if prompt is not None][:count]
