"""A run from its settings to its files: units of work that are journalled, resumed, shared out and put together.

What a unit is (a question; a question under one cell of a grid) is the caller's business: a `Job` says how many there
are, how they are produced, and what their entries become in the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pdevis.benchmarks.runs.distributed import World
from pdevis.benchmarks.runs.journal import Journal, journal_path
from pdevis.benchmarks.runs.output import Earlier, Output, check_same_pair
from pdevis.util.provenance import git_state, hardware, now

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

Entry = dict[str, Any]


@dataclass
class Job:
    """What is to be done.

    Args:
        name: for the progress bar.
        header: {"benchmark", "settings", "versions"}: what must be the same for a run to be resumed.
        units: how many there are; numbered from 0.
        produce: (pair, numbers) -> (number, entry) of each, as they are finished.
        encode: (entries in order, meta) -> the final file.
        note: an entry -> what the progress bar shows from then on.
        report: entries -> what else belongs into the meta file, and lines to say in the end.
        group: units whose number // group is the same are done by the same process.
        about: further facts for the meta file, which may differ when a run is resumed.
    """

    name: str
    header: dict[str, Any]
    units: int
    produce: Callable[[SpeculativePair, list[int]], Iterator[tuple[int, Entry]]]
    encode: Callable[[Sequence[Entry], dict[str, Any]], bytes]
    note: Callable[[Entry], dict[str, str]]
    report: Callable[[Sequence[Entry]], tuple[dict[str, Any], list[str]]]
    group: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to do with what is there, and what to show."""

    resume: bool = False
    overwrite: bool = False
    progress: bool = True


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def execute(job: Job, output: Output, load: Callable[[], SpeculativePair], options: Options, world: World) -> int:
    """Do what is left of the job and write its files; returns the exit code, 1 where a unit has failed.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: after saying how to go on.
    """
    earlier = Earlier()
    for each in world.gather(world.agree(lambda: output.earlier(job.header, options.resume, options.overwrite))):
        earlier.complete = earlier.complete or each.complete
        earlier.add(each)
    if earlier.complete is not None:
        units, failed = (earlier.complete.get(name, 0) for name in ("units", "failed"))
        if world.main:
            say(f"{output.path} is complete: {units} items, {failed} failed")
        return 1 if failed else 0
    if options.resume and world.main:
        done = len(earlier.entries)
        say(f"{done} of {job.units} items are done already" if earlier.header else "nothing to resume: starting")
    run = {"started": now(), "ended": None, "processes": world.size, "git": git_state() if world.main else None}
    begin = time.perf_counter()
    left = [unit for unit in range(job.units) if unit not in earlier.entries]
    if left:
        mine = world.share(left, job.group)
        pair = world.agree(lambda: _load(load, bool(mine), earlier, output))
        labels = earlier.header["pair"] if earlier.header else world.gather(pair and pair.describe())[0]
        earlier.header = job.header | {"pair": labels}
        run["devices"] = world.gather(hardware(pair))
        if options.overwrite:
            output.discard_journals()
        world.gather(None)  # no journal is opened while another process may still look for old ones
        fresh = _work(job, output, pair, mine, earlier, run, options, world)
        for each in world.gather(fresh):
            earlier.entries |= each
    run |= {"ended": now(), "seconds": time.perf_counter() - begin}
    code = world.agree(lambda: _finish(job, output, earlier, run) if world.main else 0)
    output.discard_journals()
    return code


def _load(
    load: Callable[[], SpeculativePair], needed: bool, earlier: Earlier, output: Output
) -> SpeculativePair | None:
    """The pair, of the same kind as in the run that is resumed; None for a process without work."""
    if not needed:
        return None
    pair = load()
    if earlier.header:
        check_same_pair(pair.describe(), earlier.header["pair"], journal_path(output.path))
    return pair


def _work(
    job: Job,
    output: Output,
    pair: SpeculativePair | None,
    mine: list[int],
    earlier: Earlier,
    run: dict[str, Any],
    options: Options,
    world: World,
) -> dict[int, Entry]:
    """This process's units, each on the disk before the next one starts."""
    fresh: dict[int, Entry] = {}
    if pair is None:
        return fresh
    alone, done = world.size == 1, len(earlier.entries)
    bar = tqdm(
        desc=job.name if alone else f"{job.name}, process 0",
        total=job.units if alone else len(mine),
        initial=done if alone else 0,
        unit="item",
        file=sys.stderr,
        disable=not (options.progress and world.main),
        dynamic_ncols=True,
    )
    with Journal(journal_path(output.path, world.rank), earlier.header or {}) as journal, bar:
        if world.main:
            journal.begin(run)
        try:
            for index, entry in job.produce(pair, mine):
                journal.add(index, entry)
                fresh[index] = entry
                bar.set_postfix(job.note(entry), refresh=False)
                bar.update()
        except KeyboardInterrupt:
            bar.close()
            if world.main:
                kept = f"{done + len(fresh)} of {job.units} items are" if alone else "finished items are"
                say(f"stopped: {kept} kept in {journal.path}; the same command with --resume goes on")
            raise
    return fresh


def _finish(job: Job, output: Output, done: Earlier, run: dict[str, Any]) -> int:
    """Write the final files from what all processes have done; returns the exit code."""
    entries = [done.entries[unit] for unit in range(job.units)]
    failures = [entry["error"] for entry in entries if "error" in entry]
    facts, lines = job.report(entries)
    runs = [*done.runs, run]
    meta = job.header | {"pair": (done.header or {}).get("pair"), "units": job.units, "failed": len(failures)}
    meta |= facts | job.about | {"started": runs[0]["started"], "ended": run["ended"], "runs": runs}
    output.write(job.encode(entries, meta), meta, job.units)
    for line in lines:
        say(line)
    if failures:
        say(f"{len(failures)} of {job.units} failed, first: {failures[0]}")
    say(f"{output.path}: {job.units} items")
    return 1 if failures else 0
