"""The files of a run: a journal of finished units while it goes on, the result and its meta data at the end.

Every finished unit of work is one JSON line of OUTPUT.partial.jsonl, on the disk before the next unit starts; the first
line is the run's header (its settings). A last line that a kill or a full disk has left incomplete is dropped. OUTPUT
itself is written once, at the end, as a whole; OUTPUT.meta.json says where the results come from.

    {"header": {…, "id": "…"}}
    {"id": "…", "run": {…}}                     one for each time that the run was started or resumed
    {"id": "…", "index": 0, "entry": {…}}

Every line has the id of its run, which is random, so that lines of another run are noticed. Files of version 0.1.0 have
none. A run holds a lock on OUTPUT from its first look at the files until its end, and each process one on its journal.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pdevis.benchmarks.runs.result_files import Entry, Meta, encode_meta, meta_path, read_meta
from pdevis.util.files import FileLock, NotTextError, decode_text, encode_json, parse_json, read_text, write_atomic
from pdevis.util.provenance import COMPARED

SUFFIX = ".partial.jsonl"


@dataclass
class JournalContent:
    """Content of a journal: its header, the runs that wrote it, and the finished units by number."""

    header: Meta | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[int, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """State that earlier runs left: finished units, or (`complete`) the meta data of a run without work left."""

    header: Meta | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[int, Entry] = field(default_factory=dict)
    complete: Meta | None = None

    @classmethod
    def merge(cls, parts: Iterable[JournalContent | Earlier]) -> Earlier:
        """Combine the journals of several processes, or what several processes have read."""
        header, complete = None, None
        runs: list[dict[str, Any]] = []
        entries: dict[int, Entry] = {}
        for part in parts:
            header = header or part.header
            complete = complete or getattr(part, "complete", None)
            runs += [run for run in part.runs if run not in runs]
            entries |= part.entries
        return cls(header, runs, entries, complete)


def journal_path(output: Path, rank: int = 0) -> Path:
    """Path of the journal of process `rank`: OUTPUT.partial.jsonl, OUTPUT.1.partial.jsonl, …"""
    return output.with_name(output.name + (f".{rank}" if rank else "") + SUFFIX)


def find_journals(output: Path) -> list[Path]:
    """The existing journals of an output, of all processes."""
    pattern = re.compile(re.escape(output.name) + r"(\.\d+)?" + re.escape(SUFFIX))
    if not output.parent.is_dir():
        return []
    return sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name))


def read_journals(paths: list[Path]) -> list[JournalContent]:
    """Content of each journal of one run; one without a complete header is left out.

    Raises:
        ValueError: a file cannot be read, is broken before its last line, or holds items of several runs.
    """
    contents = {path: content for path in paths if (content := _read(path)[0]).header is not None}
    seen: dict[int, Path] = {}
    for path, content in contents.items():
        first_path, first = next(iter(contents.items()))
        if _run_id(content.header) != _run_id(first.header):
            raise ValueError(f"{path} and {first_path} are of different runs: --overwrite starts over")
        for index in content.entries:
            if index in seen:
                raise ValueError(f"{path} and {seen[index]} both have item {index}: --overwrite starts over")
            seen[index] = path
    return list(contents.values())


def _run_id(header: Meta | None) -> str | None:
    """Id of the run that wrote a header; None for files of version 0.1.0."""
    return (header or {}).get("id")


def _read(path: Path) -> tuple[JournalContent, int]:
    """Content of a journal, and the length in bytes of its intact part."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    content, intact = JournalContent(), 0
    lines = data.split(b"\n")
    last = len(lines) - 2 if lines[-1] == b"" else len(lines) - 1
    for number, line in enumerate(lines[: last + 1]):
        try:
            value = parse_json(decode_text(line, path, intact)) if intact + len(line) < len(data) else None
        except NotTextError:
            if number != last:
                raise
            value = None
        except ValueError:
            value = None
        if value is None and number == last:
            break  # incomplete
        try:
            if number == 0:
                content.header = dict(value["header"])
                id = _run_id(content.header)
            elif "run" in value:
                content.runs.append(dict(value["run"]))
            else:
                index, entry = operator.index(value["index"]), dict(value["entry"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number + 1} is broken: not a journal, or damaged") from None
        if number and value.get("id") != id:
            raise ValueError(f"{path}: line {number + 1} is of another run than line 1: --overwrite starts over")
        if number and "run" not in value:
            if index in content.entries:
                raise ValueError(f"{path}: line {number + 1} repeats item {index}: --overwrite starts over")
            content.entries[index] = entry
        intact += len(line) + 1
    return content, intact


class Journal:
    """Journal of one process, open for appending; created with a header, or continued after its intact part.

    Raises:
        OSError: the disk refuses; the message says what is kept. ValueError: the file is not a journal, or another
            process or run has written it.
    """

    def __init__(self, path: Path, header: Meta) -> None:
        self.path = path
        self._lock = FileLock(path, flag="the journal")
        try:
            self._open(header)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, header: Meta) -> None:
        path, self._id = self.path, _run_id(header)
        content, self._intact = _read(path) if path.exists() else (JournalContent(), 0)
        if content.header is not None and _run_id(content.header) != self._id:
            raise ValueError(f"{path} has been begun by another run in the meantime; name another file")
        self.units = len(content.entries)
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error.strerror or error}") from None
        try:
            self._file.truncate(self._intact)
            if content.header is None:
                self._write({"header": header})
        except OSError:
            self._file.close()
            raise

    def add(self, index: int, entry: Entry) -> None:
        """Write a finished unit, number `index`, to the disk. Raises OSError, after removing what was written of it."""
        self._write(self._own({"index": index, "entry": entry}))
        self.units += 1

    def begin(self, run: dict[str, Any]) -> None:
        """Record that a run is started or resumed."""
        self._write(self._own({"run": run}))

    def _own(self, value: dict[str, Any]) -> dict[str, Any]:
        """Add the run's id to a line; the files of version 0.1.0 are continued without."""
        return value if self._id is None else {"id": self._id} | value

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def _write(self, value: dict[str, Any]) -> None:
        line = encode_json(value) + b"\n"
        try:
            # Unbuffered: after a failed write, no data is left that close() would try to write again.
            written = 0
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._intact)
            kept = f"its {self.units} finished items are kept: " if self.units else ""
            raise OSError(
                f"{self.path}: cannot be written: {error.strerror or error}; {kept}free disk space, "
                "then run the same command with --resume"
            ) from None
        self._intact += len(line)


@dataclass(frozen=True)
class Output:
    """Result file of a run, and what may happen to existing files.

    Args:
        path: the result file.
        flag: how the user names it, for messages.
        resume: continue an unfinished run.
        overwrite: replace existing files.
    """

    path: Path
    flag: str = "--output"
    resume: bool = False
    overwrite: bool = False

    def lock(self) -> FileLock:
        """Lock the file for this run, in one of its processes.

        Raises:
            ValueError: another run is writing it, or a process of an earlier run still writes a journal.
        """
        lock = FileLock(self.path, flag=self.flag)
        try:
            for path in find_journals(self.path):
                FileLock(path, flag="the journal").release()
        except BaseException:
            lock.release()
            raise
        return lock

    def read_earlier(self, header: Meta) -> Earlier:
        """Return the state of an earlier run that this run continues; empty if it starts from the beginning.

        Raises:
            ValueError: a file already exists and neither flag says what to do with it, or it was made with other
                settings.
        """
        journals = find_journals(self.path)
        if self.overwrite:
            return Earlier()
        if not self.resume:
            if journals:
                count = sum(len(content.entries) for content in read_journals(journals))
                raise ValueError(
                    f"{journals[0]} holds {count} finished items of an earlier run: --resume continues it, "
                    "--overwrite starts over"
                )
            if self.path.exists():
                raise ValueError(f"{self.flag} {self.path}: already exists: --overwrite replaces it")
            return Earlier()
        contents = read_journals(journals)
        if not contents:
            return self._read_finished(header)
        for content in contents:
            check_same_settings(header, content.header or {}, journals[0])
        return Earlier.merge(contents)

    def write(self, data: bytes, meta: Meta) -> None:
        """Write the meta file, then the result file. Raises OSError; the journals still exist then."""
        try:
            write_atomic(meta_path(self.path), encode_meta(meta))
            write_atomic(self.path, data)
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be written: {error.strerror or error}; all {meta['units']} finished items are "
                "kept: free disk space, then run the same command with --resume"
            ) from None

    def discard_journals(self) -> None:
        for path in find_journals(self.path):
            path.unlink(missing_ok=True)

    def _read_finished(self, header: Meta) -> Earlier:
        """Without a journal, the run is finished, or did not reach its first unit."""
        if not self.path.exists():
            return Earlier()
        meta = read_meta(self.path)
        if meta is None:
            name = meta_path(self.path).name
            raise ValueError(f"{self.flag} {self.path}: already exists without its {name}: --overwrite replaces it")
        check_same_settings(header, meta, meta_path(self.path))
        return Earlier(complete=meta)


def check_same_settings(current: Meta, recorded: Meta, path: Path) -> None:
    """Raise ValueError if the run at `path` was made with other settings or versions, naming them."""
    differences = [_difference("benchmark", current, recorded)]
    if differences == [None]:
        names = ("settings", "versions")
        settings, versions = ([header.get(name) or {} for header in (current, recorded)] for name in names)
        differences += [_difference(name, *settings) for name in sorted({*settings[0], *settings[1]})]
        differences += [_difference(name, *versions) for name in COMPARED]
    _refuse(path, "other settings", differences)


def check_same_pair(current: Meta, recorded: Meta, path: Path) -> None:
    """Raise ValueError if "auto" resolves to something else than in the run that is resumed."""
    pairs = [_without_device_numbers(labels) for labels in (current, recorded)]
    _refuse(path, "another pair", [_difference(name, *pairs) for name in sorted({*pairs[0], *pairs[1]})])


def _refuse(path: Path, made_with: str, differences: list[str | None]) -> None:
    if any(differences):
        raise ValueError(f"--resume: {path} was made with {made_with}: {'; '.join(filter(None, differences))}")


def _without_device_numbers(labels: Meta) -> Meta:
    """Labels of a pair without the numbers of its devices: a run may be resumed on any GPU."""
    devices = {name: labels[name] for name in ("target_device", "draft_device") if name in labels}
    return labels | {name: str(device).partition(":")[0] for name, device in devices.items()}


def _difference(name: str, current: Meta, recorded: Meta) -> str | None:
    values = current.get(name), recorded.get(name)
    if values[0] == values[1]:
        return None
    short = [f"{text[:12]}…" if len(text := str(value)) > 40 else text for value in values]
    return f"{name} is {short[0]}, was {short[1]}"


def read_result(path: Path) -> Any:
    """The JSON value of a result file. Raises ValueError that says what is wrong with it, without its name."""
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        hint = f"; for what has been done: {journal_path(path)}" if journal_path(path).exists() else ""
        raise ValueError(f"cannot be read: No such file or directory{hint}") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    except NotTextError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: must be JSON: {error.msg}") from None
