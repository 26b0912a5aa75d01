"""A run that can be stopped and resumed: its units of work are journalled, divided over processes, and collected.

The caller decides what a unit is (a question; a question under one cell of a grid). Units are numbered from 0, and each
has an entry, a JSON object; the entry of a unit that failed has "error".

    run = ResumableRun("mmlu", header=header, units=len(items), output=output, env=env)
    if run.is_complete:
        return run.report_complete()
    pair = env.run_on_all(lambda: load() if run.todo else None)
    with run.recording(pair):
        for unit in run.todo:
            entry = answer(unit)
            run.add(unit, entry)
            run.show_progress({})
    entries = run.collect()
    meta = run.meta(entries, {})
    run.write(encode(entries), meta)
    return run.report(entries, [])
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pdevis.benchmarks.runs.distributed import DistEnv
from pdevis.benchmarks.runs.journal import Earlier, Journal, Output, check_same_pair, journal_path
from pdevis.benchmarks.runs.result_files import Entry, Meta
from pdevis.util.provenance import git_state, hardware, now

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


class ResumableRun:
    """Units of one run: those that earlier runs finished, those left for this process, and where results go.

    Args:
        name: title of the progress bar.
        header: {"benchmark", "settings", "versions"}: what must be the same for a run to be resumed.
        units: number of units.
        output: the result file, and what may happen to existing files.
        env: this process among those of the run.
        group: units of the same group (number // group) are done by the same process.
        progress: show a progress bar.
        question_ids: of each unit, to check the entries of a run that is resumed; None: unknown.

    Raises:
        ValueError: a file already exists, or belongs to a run with other settings or questions.
    """

    def __init__(
        self,
        name: str,
        *,
        header: Meta,
        units: int,
        output: Output,
        env: DistEnv,
        group: int = 1,
        progress: bool = True,
        question_ids: Sequence[Any] | None = None,
    ) -> None:
        self.name, self.units, self.output, self.env = name, units, output, env
        self.earlier = Earlier.merge(env.gather(env.run_on_all(lambda: output.read_earlier(header))))
        env.run_on_all(lambda: self._check_units(question_ids))
        fresh_id = env.gather(secrets.token_hex(8))[0]
        run_id = (self.earlier.header or {"id": fresh_id}).get("id")
        self.header = header | ({"id": run_id} if run_id else {})
        left = [unit for unit in range(units) if unit not in self.earlier.entries]
        self.todo = [] if self.is_complete else env.split(left, group)
        self._show_progress = progress and env.is_main
        self._added: dict[int, Entry] = {}
        self._start_seconds = time.perf_counter()
        self._record: dict[str, Any] = {"started": now(), "ended": None, "processes": env.size}
        self._record["git"] = git_state() if env.is_main else None
        if output.resume and not self.is_complete:
            done = len(self.earlier.entries)
            is_new = self.earlier.header is None
            self.log("nothing to resume: starting" if is_new else f"{done} of {units} items are done already")

    def _check_units(self, question_ids: Sequence[Any] | None) -> None:
        """Raise ValueError if an entry of an earlier run is not of one of this run's units."""
        path = journal_path(self.output.path)
        for unit, entry in self.earlier.entries.items():
            if not 0 <= unit < self.units:
                raise ValueError(f"--resume: {path} has an item {unit}, and this run the items 0 to {self.units - 1}")
            expected = question_ids[unit] if question_ids else entry.get("question_id")
            if (found := entry.get("question_id")) != expected:
                raise ValueError(
                    f"--resume: {path} has question {found!r} as item {unit}, which is {expected!r} in the dataset: "
                    "--overwrite starts over"
                )

    @property
    def is_complete(self) -> bool:
        """True if the run to be resumed has nothing left to do, and its result file exists."""
        return self.earlier.complete is not None

    def report_complete(self) -> int:
        """Report a complete run; returns its exit code."""
        units, failed = ((self.earlier.complete or {}).get(name, 0) for name in ("units", "failed"))
        self.log(f"{self.output.path} is complete: {units} items, {failed} failed")
        return 1 if failed else 0

    @contextmanager
    def recording(self, pair: SpeculativePair | None) -> Iterator[None]:
        """Open the journal and the progress bar, to `add` entries; after Ctrl-C, report how to resume.

        Args:
            pair: what the units are computed with; None if this process has nothing to do.

        Raises:
            ValueError: the pair is of another kind than in the run that is resumed.
        """
        self._describe_pair(pair)
        if self.output.overwrite:
            self.output.discard_journals()
        self.env.gather(None)  # no journal is opened while another process may still be looking for old ones
        if pair is None:
            yield
            return
        path = journal_path(self.output.path, self.env.rank)
        with Journal(path, self.header) as self._journal, self._open_bar() as self._bar:
            if self.env.is_main:
                self._journal.begin(self._record)
            try:
                yield
            except KeyboardInterrupt:
                self._bar.close()
                alone, done = self.env.size == 1, len(self.earlier.entries) + len(self._added)
                kept = f"{done} of {self.units} items are" if alone else "finished items are"
                self.log(f"stopped: {kept} kept in {path}; run the same command with --resume to continue")
                raise

    def add(self, unit: int, entry: Entry) -> None:
        """Write a finished unit to the journal. Raises OSError if the disk refuses."""
        self._journal.add(unit, entry)
        self._added[unit] = entry

    def show_progress(self, values: Mapping[str, str]) -> None:
        """Advance the progress bar by one unit, and show these values after it."""
        self._bar.set_postfix(values, refresh=False)
        self._bar.update()

    def collect(self) -> list[Entry]:
        """Entries of all units, in order: of earlier runs and of all processes. Waits for the other processes."""
        entries = dict(self.earlier.entries)
        for added in self.env.gather(self._added):
            entries |= added
        self._record |= {"ended": now(), "seconds": time.perf_counter() - self._start_seconds}
        return [entries[unit] for unit in range(self.units)]

    def meta(self, entries: Sequence[Entry], facts: Mapping[str, Any]) -> Meta:
        """Content of the meta file: the header, counts, `facts`, and the times of all runs that did the work."""
        runs = [*self.earlier.runs, self._record]
        counts = {"units": self.units, "failed": sum("error" in entry for entry in entries)}
        times = {"started": runs[0]["started"], "ended": self._record["ended"], "runs": runs}
        return self.header | counts | dict(facts) | times

    def write(self, data: bytes, meta: Meta) -> None:
        """Write the result file and its meta file, then remove the journals (main process). Raises OSError."""
        self.env.run_on_all(lambda: self.output.write(data, meta) if self.env.is_main else None)
        if self.env.is_main:  # it holds the lock; other processes may be so late that another run has begun
            self.output.discard_journals()

    def report(self, entries: Sequence[Entry], lines: Sequence[str]) -> int:
        """Print `lines`, the number of failures and the result file; returns the exit code: 1 if a unit failed."""
        failures = [entry["error"] for entry in entries if "error" in entry]
        for line in lines:
            self.log(line)
        if failures:
            self.log(f"{len(failures)} of {self.units} failed, first: {failures[0]}")
        self.log(f"{self.output.path}: {self.units} items")
        return 1 if failures and self.env.is_main else 0

    def log(self, text: str) -> None:
        """Print a line on stderr, in the main process only."""
        if self.env.is_main:
            print(text, file=sys.stderr, flush=True)

    def _describe_pair(self, pair: SpeculativePair | None) -> None:
        """Complete the header by the pair's labels, and the record of this run by its devices."""
        labels = pair.describe() if pair is not None else None
        if self.earlier.header is None:
            self.header = self.header | {"pair": self.env.gather(labels)[0]}
        else:
            recorded = self.earlier.header["pair"]
            path = journal_path(self.output.path)
            self.env.run_on_all(lambda: check_same_pair(labels, recorded, path) if labels is not None else None)
            self.header = self.header | {"pair": recorded}
        devices = self.env.gather(hardware(pair))
        if any(devices):
            self._record["devices"] = devices

    def _open_bar(self) -> tqdm:
        alone = self.env.size == 1
        return tqdm(
            desc=self.name if alone else f"{self.name}, process 0",
            total=self.units if alone else len(self.todo),
            initial=len(self.earlier.entries) if alone else 0,
            unit="item",
            file=sys.stderr,
            disable=not self._show_progress,
            dynamic_ncols=True,
        )
