"""Trace files as the simulator sees them. Whatever is wrong with one is said in a line that names file and line.

Shapes: L = layers of the drafter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pdevis.config import AUTO, DraftConfig
from pdevis.trace import BAND, KIND, VERSION, Band, ExactPass, Sizes, TracedGeneration, TracedRound, full
from pdevis.util.validation import check_integer

Table = list[list[float]]  # [L + 1, L + 1] of cos(h_i, h_j)
RULE = [field.name for field in fields(DraftConfig)]


@dataclass(frozen=True)
class Trace:
    """A whole file. `rule` is how the drafter ran, its mode resolved."""

    name: str
    pair: Mapping[str, Any]
    rule: DraftConfig
    layers: int
    sizes: Sizes
    generations: tuple[TracedGeneration, ...] = ()

    @property
    def rounds(self) -> Iterator[TracedRound]:
        return (each for generation in self.generations for each in generation.rounds)

    @cached_property
    def calibrations(self) -> list[list[Table | None]]:
        """By generation and round, what a calibration pass sees: the tokens confirmed since the last one. None:
        nothing was recorded.

        A run under a rule that approximates has recorded just that. An exact run keeps what it accepts in its cache
        and reads only the rest, so its passes over the tokens accepted in the round before are taken together with it.
        """
        exact = self.rule.mode == "exact"
        return [list(_calibrations(generation.rounds, exact)) for generation in self.generations]


def _calibrations(rounds: Iterable[TracedRound], exact: bool) -> Iterator[Table | None]:
    accepted: list[ExactPass] = []
    for each in rounds:
        first = [one for one in each.passes if one.step == 0]
        yield full(_mean([*accepted, *first])) if first else None
        accepted = [one for one in each.passes if exact and 0 < one.step <= each.accepted]


def _mean(passes: list[ExactPass]) -> Band:
    """The mean over all tokens."""
    if len(passes) == 1:
        return passes[0].similarities
    tokens = sum(each.tokens for each in passes)
    weights = [each.tokens / tokens for each in passes]
    rows = zip(*(each.similarities for each in passes))
    return [[sum(w * x for w, x in zip(weights, values)) for values in zip(*row)] for row in rows]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace. A last line that was cut short, since the run was stopped, is left out.

    Raises:
        ValueError: for a file that cannot be read, is no trace, was made by another version, or is broken.
    """
    file = Path(path)
    reader = _Reader(file)
    try:
        with file.open("rb") as lines:
            for line in lines:
                reader.take(line)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from None
    except KeyError as error:
        raise ValueError(f"{file}, line {reader.number}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}, line {reader.number}: {error}") from None
    return reader.trace()


class _Reader:
    """Builds a trace line by line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.number = 0  # of the line
        self.head: Trace | None = None
        self.generations: list[TracedGeneration] = []
        self.rounds: list[TracedRound] = []  # of the last generation

    def take(self, line: bytes) -> None:
        self.number += 1
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            if line.endswith(b"\n"):
                raise ValueError("is not JSON") from None
            return
        if self.head is None:
            self.head = _header(self.file.name, content)
        elif not isinstance(content, dict) or content.get("kind") not in ("generation", "round"):
            raise ValueError("is neither a generation nor a round")
        elif content["kind"] == "generation":
            self._end_generation()
            self.generations.append(_make(TracedGeneration, content, without=("rounds",)))
        else:
            current = self.generations[-1].number if self.generations else None
            if content["generation"] != current:
                told = "none has begun" if current is None else f"must be {current}, the one that runs"
                raise ValueError(f"generation = {content['generation']!r}: {told}")
            passes = tuple(_make(ExactPass, each) for each in content["passes"])
            for each in passes:
                _check_band(each.similarities, self.head.layers)
            self.rounds.append(_make(TracedRound, content | {"passes": passes}))

    def trace(self) -> Trace:
        if self.head is None:
            raise ValueError(f"{self.file}: is no trace of pdevis: it has no whole line")
        self._end_generation()
        return replace(self.head, generations=tuple(self.generations))

    def _end_generation(self) -> None:
        if self.generations:
            self.generations[-1] = replace(self.generations[-1], rounds=tuple(self.rounds))
        self.rounds = []


def _header(name: str, content: Any) -> Trace:
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError("is no trace of pdevis; the flag --trace of a run makes one")
    if content.get("version") != VERSION:
        raise ValueError(f"version = {content.get('version')!r}: must be {VERSION}; record the trace again")
    pair, layers = content["pair"], content["layers"]
    check_integer("layers", layers, minimum=1)
    rule = DraftConfig(**{key: pair[key] for key in RULE})
    if rule.mode == AUTO:
        raise ValueError("mode = 'auto': must be exact, skip or parallel")
    return Trace(name, pair, rule, layers, _make(Sizes, content["sizes"]))


def _make(kind: type, content: dict[str, Any], without: tuple[str, ...] = ()) -> Any:
    return kind(**{each.name: content[each.name] for each in fields(kind) if each.name not in without})


def _check_band(rows: Any, layers: int) -> None:
    if not isinstance(rows, list) or len(rows) != layers:
        raise ValueError(f"similarities: must be {layers} lists, one a layer")
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != min(i, BAND) or not all(type(x) in (float, int) for x in row):
            raise ValueError(f"similarities: list {i} must hold {min(i, BAND)} numbers")
