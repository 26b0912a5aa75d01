"""The journal of a run: one JSON line per finished unit of work, on the disk before the next unit starts.

The first line is the run's header (its settings). A line that a kill or a full disk has cut short is dropped; whatever
stands before it counts.

    {"header": {…}}
    {"run": {…}}                     one for each time that the run was started or resumed
    {"index": 0, "entry": {…}}
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pdevis.benchmarks.runs.result_files import encode_json

SUFFIX = ".partial.jsonl"


@dataclass
class Recorded:
    """What a journal holds: its header, the runs that wrote it, and the finished units by number."""

    header: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)


def journal_path(output: Path, rank: int = 0) -> Path:
    """Where process `rank` keeps its journal: OUTPUT.partial.jsonl, OUTPUT.1.partial.jsonl, …"""
    return output.with_name(output.name + (f".{rank}" if rank else "") + SUFFIX)


def find_journals(output: Path) -> list[Path]:
    """The journals beside an output, of all processes."""
    pattern = re.compile(re.escape(output.name) + r"(\.\d+)?" + re.escape(SUFFIX))
    if not output.parent.is_dir():
        return []
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name))


def read_journals(paths: list[Path]) -> list[Recorded]:
    """What each journal holds; one without even a header is left out.

    Raises:
        ValueError: for a file that cannot be read or is broken before its last line, naming file and line.
    """
    found = [_read(path)[0] for path in paths]
    return [each for each in found if each.header is not None]


def _read(path: Path) -> tuple[Recorded, int]:
    """What a journal holds, and the length in bytes of its sound part."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    recorded, sound = Recorded(), 0
    lines = data.split(b"\n")
    last = len(lines) - 2 if lines[-1] == b"" else len(lines) - 1
    for number, line in enumerate(lines[: last + 1]):
        try:
            value = json.loads(line) if sound + len(line) < len(data) else None
        except ValueError:
            value = None
        if value is None and number == last:
            break  # torn
        try:
            if number == 0:
                recorded.header = dict(value["header"])
            elif "run" in value:
                recorded.runs.append(dict(value["run"]))
            else:
                recorded.entries[int(value["index"])] = dict(value["entry"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number + 1} is broken: not a journal, or damaged") from None
        sound += len(line) + 1
    return recorded, sound


class Journal:
    """One process's journal, open for appending; made with a header, or continued behind its sound part.

    Raises:
        OSError: where the disk refuses; the message says what is kept. ValueError: for a file that is no journal.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        recorded, self._sound = _read(path) if path.exists() else (Recorded(), 0)
        self.units = len(recorded.entries)
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error.strerror or error}") from None
        try:
            self._file.truncate(self._sound)
            if recorded.header is None:
                self._write({"header": header})
        except OSError:
            self._file.close()
            raise

    def add(self, index: int, entry: dict[str, Any]) -> None:
        """Put a finished unit, number `index`, on the disk. Raises OSError, after taking back what was
        written of it."""
        self._write({"index": index, "entry": entry})
        self.units += 1

    def begin(self, run: dict[str, Any]) -> None:
        """Note that a run starts, or goes on."""
        self._write({"run": run})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        line = encode_json(value) + b"\n"
        try:
            # Unbuffered, so that a failed write leaves nothing behind that close() would try again.
            written = 0
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._sound)
            kept = f"its {self.units} finished items are kept: " if self.units else ""
            raise OSError(
                f"{self.path}: cannot be written: {error.strerror or error}; {kept}make room, "
                "then run the same command with --resume"
            ) from None
        self._sound += len(line)


def read_result(path: Path) -> Any:
    """The JSON of a result file. Raises ValueError that says what is wrong with it, on one line without its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"; for what has been done: {journal_path(path)}" if journal_path(path).exists() else ""
        raise ValueError(f"cannot be read: No such file or directory{hint}") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: must be JSON: {error.msg}") from None
