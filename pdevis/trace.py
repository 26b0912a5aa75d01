"""Trace files: per-round costs of a run and the similarities of its drafter's hidden states, for `pdevis.simulate`.

JSON lines, written by `Tracer` and read by `simulate.trace_reader`:

    {"kind": "pdevis-trace", "version": 1, "pair": {of pair.describe()}, "layers": L, "sizes": {fields of Sizes}}
    {"kind": "generation", fields of TracedGeneration}
    {"kind": "round", "generation": its number, fields of TracedRound, "passes": [{fields of ExactPass}]}

Schedules look back a few layers only, so of all cos(h_i, h_j) a band along the diagonal is stored. Importing this needs
no torch.

Shapes: L = layers of the drafter.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from pdevis.config import DecodeConfig
from pdevis.generation import Round
from pdevis.util.validation import check_bool, check_integer, check_number

KIND, VERSION = "pdevis-trace", 1
BAND = 16  # layers that the band reaches back; no group is longer
NEVER = -1.0  # cosine below every threshold: states outside the band are never similar
DIGITS = 6

Band = Sequence[Sequence[float]]  # [i - 1][d - 1] = cos(h_i, h_(i-d)) for i = 1 … L, d = 1 … min(i, BAND)


def band(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the band of cos(h_i, h_j), an (L + 1) x (L + 1) table. A NaN cosine becomes NEVER."""
    rows = [[matrix[i][i - back] for back in range(1, min(i, BAND) + 1)] for i in range(1, len(matrix))]
    return [[round(value, DIGITS) if value == value else NEVER for value in row] for row in rows]


def full(rows: Band) -> list[list[float]]:
    """Return the band as the [L + 1][L + 1] table that `plan_schedule` takes: symmetric, 1 on the diagonal."""
    size = len(rows) + 1
    matrix = [[NEVER] * size for _ in range(size)]
    matrix[0][0] = 1.0
    for i, row in enumerate(rows, 1):
        matrix[i][i] = 1.0
        for back, value in enumerate(row, 1):
            matrix[i][i - back] = matrix[i - back][i] = value
    return matrix


@dataclass(frozen=True)
class Sizes:
    """Number of drafter weights that one token reads: of one layer's attention, of its MLP, of the output head."""

    attention: int
    mlp: int
    head: int

    def __post_init__(self) -> None:
        for name in ("attention", "mlp", "head"):
            check_integer(name, getattr(self, name), minimum=0)
        check_integer("attention + mlp", self.attention + self.mlp, minimum=1)


@dataclass(frozen=True)
class ExactPass:
    """One exact forward of the drafter: its index in the round, its tokens, and their mean similarities."""

    step: int
    tokens: int
    similarities: Band

    def __post_init__(self) -> None:
        check_integer("step", self.step, minimum=0)
        check_integer("tokens", self.tokens, minimum=1)


@dataclass(frozen=True)
class TracedRound:
    """Counts and seconds of one round.

    `draft_seconds` is the time that the target waited. `ahead`: the draft was made during the last verification;
    `guessed`: the drafter's guess of the bonus token was right. None: does not apply.
    """

    drafted: int
    accepted: int
    steps: int
    depth: int
    draft_seconds: float
    verify_seconds: float
    ahead: bool | None = None
    guessed: bool | None = None
    passes: tuple[ExactPass, ...] = ()

    def __post_init__(self) -> None:
        for name in ("drafted", "accepted", "steps", "depth"):
            check_integer(name, getattr(self, name), minimum=0)
        if self.accepted > self.drafted:
            raise ValueError(f"accepted = {self.accepted}: must be <= {self.drafted}, the tokens drafted")
        if self.drafted > self.steps:
            raise ValueError(f"steps = {self.steps}: must be >= {self.drafted}, the tokens drafted")
        for name in ("draft_seconds", "verify_seconds"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("ahead", "guessed"):
            if getattr(self, name) is not None:
                check_bool(name, getattr(self, name))


@dataclass(frozen=True)
class TracedGeneration:
    """Settings and rounds of one generation."""

    number: int
    prompt_tokens: int
    gamma: int | str
    temperature: float
    overlap: bool
    rounds: tuple[TracedRound, ...] = ()

    def __post_init__(self) -> None:
        check_integer("number", self.number, minimum=0)
        check_integer("prompt_tokens", self.prompt_tokens, minimum=0)
        DecodeConfig(gamma=self.gamma, temperature=self.temperature, overlap=self.overlap)


class TraceWriter:
    """Writes a trace file line by line while a run decodes.

    Args:
        path: a file that does not exist yet; `create` or `open` creates it.

    Raises:
        ValueError: for a path that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: FileIO | None = None
        self._header: dict[str, Any] = {}
        if self.path.exists():
            raise ValueError(f"--trace {self.path}: already exists; name a new file")
        if not self.path.parent.is_dir():
            raise ValueError(f"--trace {self.path}: the folder {self.path.parent} does not exist; make it first")

    def create(self) -> None:
        """Create the file, so that no other process writes it. A second call does nothing.

        Raises:
            ValueError: another process was faster. OSError: the folder cannot be written to.
        """
        if self._file is not None:
            return
        try:
            self._file = self.path.open("xb", buffering=0)  # after a failed write nothing is left to be written again
        except FileExistsError:
            raise ValueError(f"--trace {self.path}: already exists; name a new file") from None
        except OSError as error:
            raise OSError(f"--trace {self.path}: cannot be written: {error.strerror or error}") from None

    def open(self, *, pair: Mapping[str, Any], layers: int, sizes: Sizes) -> None:
        """Write the header. A second call with the same values does nothing.

        Raises:
            ValueError: if a value has changed: a file holds one pair and rule.
        """
        header = {"pair": dict(pair), "layers": layers, "sizes": vars(sizes)}
        if not self._header:
            self.create()
            self._header = header
            self._write({"kind": KIND, "version": VERSION} | header)
        elif header != self._header:
            old, new = self._header["pair"] | self._header, header["pair"] | header
            name = next(key for key in [*old, *new] if old.get(key) != new.get(key))
            change = f"{name} has changed from {old.get(name)!r} to {new.get(name)!r}"
            raise ValueError(f"--trace {self.path}: {change}; a trace holds one pair and rule, name a new file")

    def generation(
        self, *, number: int, prompt_tokens: int, gamma: int | str, temperature: float, overlap: bool
    ) -> None:
        made = TracedGeneration(number, prompt_tokens, gamma, temperature, overlap)
        self._write({"kind": "generation"} | {name: value for name, value in vars(made).items() if name != "rounds"})

    def round(
        self,
        *,
        generation: int,
        drafted: int,
        accepted: int,
        steps: int,
        depth: int,
        draft_seconds: float,
        verify_seconds: float,
        ahead: bool | None = None,
        guessed: bool | None = None,
        passes: Sequence[ExactPass] = (),
    ) -> None:
        """Write one round; the `passes` hold bands: ExactPass(step, tokens, band(matrix))."""
        made = TracedRound(
            drafted, accepted, steps, depth, draft_seconds, verify_seconds, ahead, guessed, tuple(passes)
        )
        content = vars(made) | {"passes": [vars(exact_pass) for exact_pass in made.passes]}
        self._write({"kind": "round", "generation": generation} | content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, content: dict[str, Any]) -> None:
        assert self._file is not None, "open first"
        line = json.dumps(content).encode() + b"\n"
        intact = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(intact)
            reason = error.strerror or error
            raise OSError(f"--trace {self.path}: cannot be written: {reason}; the rounds before are kept") from None


class Tracer:
    """Records the rounds of one pair's generations in one trace file; a `RoundRecorder` of the decode loop.

    Args:
        path: a file that does not exist yet.

    Raises:
        ValueError: for a path that cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.writer = TraceWriter(path)
        self._generation = -1  # number of the current one
        self._layers, self._sizes = 0, Sizes(attention=0, mlp=1, head=0)

    def describe_drafter(self, config: Any, head_rows: int | None) -> None:
        """Read the drafter's sizes from its transformers config; `head_rows`: ids of a smaller output head."""
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        self._layers = config.num_hidden_layers
        self._sizes = Sizes(
            attention=hidden * head_dim * (2 * heads + 2 * kv_heads),
            mlp=3 * hidden * config.intermediate_size,
            head=hidden * min(head_rows or config.vocab_size, config.vocab_size),
        )

    def begin(self, pair: Mapping[str, Any], prompt_tokens: int, config: DecodeConfig) -> None:
        """Begin a generation. Raises ValueError if `pair` is not the one that the file was opened for."""
        self.writer.open(pair=pair, layers=self._layers, sizes=self._sizes)
        self._generation += 1
        self.writer.generation(
            number=self._generation,
            prompt_tokens=prompt_tokens,
            gamma=config.gamma,
            temperature=config.temperature,
            overlap=config.overlap,
        )

    def record(self, round: Round) -> None:
        """Write one round of the current generation."""
        draft = round.draft
        self.writer.round(
            generation=self._generation,
            drafted=len(draft.ids),
            accepted=round.verdict.accepted,
            steps=draft.steps,
            depth=draft.depth,
            draft_seconds=round.draft_seconds,
            verify_seconds=round.verify_seconds,
            ahead=draft.ahead,
            passes=[ExactPass(seen.step, seen.tokens, band(seen.similarities)) for seen in draft.passes],
        )
