"""The files of a run, and what may become of those that are already there.

OUTPUT is written once, at the end, whole. Until then every finished unit stands in OUTPUT.partial.jsonl (see journal);
OUTPUT.meta.json tells where the results come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdevis.benchmarks.runs.journal import Recorded, find_journals, read_journals
from pdevis.benchmarks.runs.provenance import COMPARED
from pdevis.benchmarks.runs.result_files import encode_json, meta_path, read_meta
from pdevis.util.files import write_atomic


@dataclass
class Earlier:
    """What earlier runs have left: finished units, or (`complete`) the meta of a run with nothing left to do."""

    header: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    complete: dict[str, Any] | None = None

    def add(self, other: Earlier | Recorded) -> None:
        self.header = self.header or other.header
        self.runs += [run for run in other.runs if run not in self.runs]
        self.entries |= other.entries


@dataclass(frozen=True)
class Output:
    """Where a run writes.

    Args:
        path: the final file.
        flag: how the user names it, for messages.
    """

    path: Path
    flag: str = "--output"

    def earlier(self, header: dict[str, Any], resume: bool, overwrite: bool) -> Earlier:
        """What an earlier run has left that this one goes on from; nothing where it starts afresh.

        Raises:
            ValueError: where something is there and neither flag says what to do with it, or where it was made with
                other settings.
        """
        journals = find_journals(self.path)
        if overwrite:
            return Earlier()
        if not resume:
            if journals:
                count = sum(len(each.entries) for each in read_journals(journals))
                raise ValueError(
                    f"{journals[0]} holds {count} finished items of an earlier run: --resume continues it, "
                    "--overwrite starts over"
                )
            if self.path.exists():
                raise ValueError(f"{self.flag} {self.path}: already exists: --overwrite replaces it")
            return Earlier()
        found = read_journals(journals)
        if not found:
            return self._finished(header)
        together = Earlier()
        for each in found:
            self._compare(header, each.header or {}, journals[0])
            together.add(each)
        return together

    def write(self, data: bytes, meta: dict[str, Any], units: int) -> None:
        """The meta file, then the final file. Raises OSError; the journals are still there then."""
        try:
            write_atomic(meta_path(self.path), encode_meta(meta))
            write_atomic(self.path, data)
        except OSError as error:
            raise OSError(
                f"{self.path}: cannot be written: {error.strerror or error}; all {units} finished items are kept: make "
                "room, then run the same command with --resume"
            ) from None

    def discard_journals(self) -> None:
        for path in find_journals(self.path):
            path.unlink(missing_ok=True)

    def _finished(self, header: dict[str, Any]) -> Earlier:
        """No journal: the run has been finished, or never got to its first unit."""
        if not self.path.exists():
            return Earlier()
        meta = read_meta(self.path)
        if meta is None:
            raise ValueError(f"{self.flag} {self.path}: is there without its {meta_path(self.path).name}: --overwrite")
        self._compare(header, meta, meta_path(self.path))
        return Earlier(complete=meta)

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
        found = differing(ours, theirs)
        if found:
            raise ValueError(f"--resume: {path} was made with other settings: {'; '.join(found)}")


def encode_meta(meta: dict[str, Any]) -> bytes:
    """A key a line, so that two meta files can be compared by eye."""
    lines = [f"  {encode_json(key).decode()}: {encode_json(value).decode()}" for key, value in meta.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The settings and versions in which two headers differ, each as "name X, there Y"."""
    found = [_pair("benchmark", ours, theirs)]
    if found == [None]:
        mine, other = ours.get("settings") or {}, theirs.get("settings") or {}
        found += [_pair(name, mine, other) for name in sorted({*mine, *other})]
        mine, other = ours.get("versions") or {}, theirs.get("versions") or {}
        found += [_pair(name, mine, other) for name in COMPARED]
    return [each for each in found if each]


def check_same_pair(ours: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
    """Raises ValueError where "auto" has become something else than in the run that is resumed."""
    mine, other = (comparable(each) for each in (ours, theirs))
    found = [text for name in sorted({*mine, *other}) if (text := _pair(name, mine, other))]
    if found:
        raise ValueError(f"--resume: {path} was made with another pair: {'; '.join(found)}")


def comparable(pair: dict[str, Any]) -> dict[str, Any]:
    """A pair's description without the numbers of its devices: any GPU will do."""
    described = dict(pair)
    for name in ("target_device", "draft_device"):
        if name in described:
            described[name] = str(described[name]).partition(":")[0]
    return described


def _pair(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    mine, other = ours.get(name), theirs.get(name)
    if mine == other:
        return None
    short = [f"{text[:12]}…" if len(text := str(value)) > 40 else text for value in (mine, other)]
    return f"{name} {short[0]}, there {short[1]}"
