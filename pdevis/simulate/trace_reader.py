"""Reading trace files for the simulator. An error names the file and the line.

Shapes: L = layers of the drafter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pdevis.config import AUTO, DraftConfig
from pdevis.trace import BAND, KIND, VERSION, Band, ExactPass, Sizes, TracedGeneration, TracedRound, full
from pdevis.util.files import NotTextError, decode_text, parse_json
from pdevis.util.validation import check_integer

Table = list[list[float]]  # [L + 1, L + 1] of cos(h_i, h_j)
STATIC_FIELDS = ("schedule", "retention", "stagger", "corrections")  # only in traces of static schedules
RULE_FIELDS = [field.name for field in fields(DraftConfig) if field.name not in STATIC_FIELDS]


@dataclass(frozen=True)
class Trace:
    """One trace file. `rule` is the drafting rule of the run, its mode resolved."""

    name: str
    pair: Mapping[str, Any]
    rule: DraftConfig
    layers: int
    sizes: Sizes
    generations: tuple[TracedGeneration, ...] = ()

    @property
    def rounds(self) -> Iterator[TracedRound]:
        return (traced for generation in self.generations for traced in generation.rounds)

    @cached_property
    def calibrations(self) -> list[list[Table | None]]:
        """Similarities that a calibration pass sees, by generation and round: those of the tokens confirmed since the
        last one; None if nothing was recorded.

        A run under an approximate rule recorded exactly this. An exact run keeps the accepted tokens in its KV cache
        and reads only the rest, so its passes over the tokens accepted in the last round are averaged with it.
        """
        exact = self.rule.mode == "exact"
        return [list(_calibrations(generation.rounds, exact)) for generation in self.generations]


def _calibrations(rounds: Iterable[TracedRound], exact: bool) -> Iterator[Table | None]:
    accepted_passes: list[ExactPass] = []
    for traced in rounds:
        first_pass = [exact_pass for exact_pass in traced.passes if exact_pass.step == 0]
        yield full(_mean_similarities([*accepted_passes, *first_pass])) if first_pass else None
        accepted_passes = [
            exact_pass for exact_pass in traced.passes if exact and 0 < exact_pass.step <= traced.accepted
        ]


def _mean_similarities(passes: list[ExactPass]) -> Band:
    """Return the mean over the tokens of all passes."""
    if len(passes) == 1:
        return passes[0].similarities
    tokens = sum(exact_pass.tokens for exact_pass in passes)
    weights = [exact_pass.tokens / tokens for exact_pass in passes]
    rows = zip(*(exact_pass.similarities for exact_pass in passes))
    return [[sum(w * x for w, x in zip(weights, values)) for values in zip(*row)] for row in rows]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace. An incomplete last line, left by a run that was stopped, is ignored.

    Raises:
        ValueError: the file cannot be read, is not a trace, has another version, or is broken.
    """
    file = Path(path)
    reader = _Reader(file)
    try:
        with file.open("rb") as lines:
            for line in lines:
                reader.add_line(line)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from None
    except NotTextError:
        raise
    except KeyError as error:
        raise ValueError(f"{file}, line {reader.line_number}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}, line {reader.line_number}: {error}") from None
    return reader.trace()


class _Reader:
    """Builds a trace line by line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.line_number, self.position = 0, 0
        self.header: Trace | None = None
        self.generations: list[TracedGeneration] = []
        self.rounds: list[TracedRound] = []  # of the last generation

    def add_line(self, line: bytes) -> None:
        """Parse one line. Raises ValueError, KeyError, TypeError or AttributeError if it is broken."""
        self.line_number += 1
        try:
            content = parse_json(decode_text(line, self.file, self.position))
        except ValueError as error:
            if line.endswith(b"\n"):
                raise error if isinstance(error, NotTextError) else ValueError("is not JSON") from None
            return
        finally:
            self.position += len(line)
        if self.header is None:
            self.header = _read_header(self.file.name, content)
        elif not isinstance(content, dict) or content.get("kind") not in ("generation", "round"):
            raise ValueError("is neither a generation nor a round")
        elif content["kind"] == "generation":
            self._end_generation()
            self.generations.append(_from_json(TracedGeneration, content, without=("rounds",)))
        else:
            self._add_round(content, self.header.layers)

    def trace(self) -> Trace:
        """Return what has been read. Raises ValueError if there is not even a header."""
        if self.header is None:
            raise ValueError(f"{self.file}: is not a pdevis trace: it has no complete line")
        self._end_generation()
        return replace(self.header, generations=tuple(self.generations))

    def _add_round(self, content: dict[str, Any], layers: int) -> None:
        current = self.generations[-1].number if self.generations else None
        if content["generation"] != current:
            reason = "no generation has started" if current is None else f"must be {current}, the current generation"
            raise ValueError(f"generation = {content['generation']!r}: {reason}")
        passes = tuple(_from_json(ExactPass, values) for values in content["passes"])
        for exact_pass in passes:
            _check_band(exact_pass.similarities, layers)
        self.rounds.append(_from_json(TracedRound, content | {"passes": passes}))

    def _end_generation(self) -> None:
        if self.generations:
            self.generations[-1] = replace(self.generations[-1], rounds=tuple(self.rounds))
        self.rounds = []


def _read_header(name: str, content: Any) -> Trace:
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError("is not a pdevis trace; the flag --trace of a run writes one")
    if content.get("version") != VERSION:
        raise ValueError(f"version = {content.get('version')!r}: must be {VERSION}; record the trace again")
    pair, layers = content["pair"], content["layers"]
    check_integer("layers", layers, minimum=1)
    static = {field: pair[field] for field in STATIC_FIELDS if field in pair}
    rule = DraftConfig(**{field: pair[field] for field in RULE_FIELDS} | static)
    if rule.mode == AUTO:
        raise ValueError("mode = 'auto': must be exact, skip or parallel")
    return Trace(name, pair, rule, layers, sizes=_from_json(Sizes, content["sizes"]))


def _from_json(kind: type, content: dict[str, Any], without: tuple[str, ...] = ()) -> Any:
    """Return an instance of a dataclass from the keys named like its fields."""
    return kind(**{field.name: content[field.name] for field in fields(kind) if field.name not in without})


def _check_band(rows: Any, layers: int) -> None:
    if not isinstance(rows, list) or len(rows) != layers:
        raise ValueError(f"similarities: must be {layers} lists, one per layer")
    for i, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != min(i, BAND) or not all(type(x) in (float, int) for x in row):
            raise ValueError(f"similarities: list {i} must hold {min(i, BAND)} numbers")
