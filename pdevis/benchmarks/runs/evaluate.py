"""An evaluate script's work: one benchmark, every method over each item, one result file.

run_main(run_evaluation, evaluation_parser("mmlu", __doc__, root).parse_args())
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pdevis.benchmarks.runs.distributed import join_world, leave_world
from pdevis.benchmarks.runs.jobs import Entry, Job, Options, execute
from pdevis.benchmarks.runs.lossless_check import tally, verdict
from pdevis.benchmarks.runs.result_files import METHOD_KEYS, METHODS, encode_results
from pdevis.benchmarks.runs.run_spec import join_as_worker, read_inputs, uses_chat
from pdevis.benchmarks.runs.runner import Conditions, run_items
from pdevis.cli import is_main_rank

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


def run_evaluation(args: argparse.Namespace) -> int:
    """Evaluate as the flags of `evaluation_parser` say; returns the exit code: 1 where an item has failed.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: finished items are kept.
    """
    if not is_main_rank(args):
        return join_as_worker(args)
    world = join_world(args)
    seed = world.seed()
    inputs = world.agree(lambda: read_inputs(args, world, seed))
    methods = [method for method in METHODS if method in args.methods]
    inputs.header["settings"]["methods"] = methods
    keys = {method: METHOD_KEYS(args.benchmark)[method] for method in methods}

    def produce(pair: SpeculativePair, units: list[int]) -> Iterator[tuple[int, Entry]]:
        conditions = Conditions(tuple(methods), inputs.decode, uses_chat(args, pair))
        return run_items(pair, inputs.task, [(unit, inputs.items[unit]) for unit in units], conditions)

    job = Job(
        name=args.benchmark,
        header=inputs.header,
        units=len(inputs.items),
        produce=produce,
        encode=lambda entries, meta: encode_results(args.benchmark, entries),
        note=Speeds(keys).note,
        report=lambda entries: _report(entries, keys),
        group=1,
        about=inputs.about,
    )
    code = execute(job, inputs.output, inputs.load, Options(args.resume, args.overwrite, args.progress), world)
    leave_world(world)
    return code


class Speeds:
    """Sums over entries of what each method has written, and in what time. `keys`: method -> name of its block."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        self.tokens = dict.fromkeys(keys, 0)
        self.seconds = dict.fromkeys(keys, 0.0)
        self.drafted = self.accepted = 0

    def add(self, entry: Entry) -> None:
        if "error" in entry:
            return
        for method, key in self.keys.items():
            self.tokens[method] += entry[key]["tokens_generated"]
            self.seconds[method] += entry[key]["seconds"]
            self.drafted += entry[key].get("drafted", 0)
            self.accepted += entry[key].get("accepted", 0)

    def note(self, entry: Entry) -> dict[str, str]:
        """Add an entry; the speed of each method until now, and the acceptance rate, in a few words."""
        self.add(entry)
        shown = {f"{method} tok/s": f"{rate:.1f}" for method in self.keys if (rate := self.rate(method)) is not None}
        return shown | ({"acceptance": f"{self.accepted / self.drafted:.2f}"} if self.drafted else {})

    def rate(self, method: str) -> float | None:
        """Tokens per decode second, sum over sum."""
        return self.tokens[method] / self.seconds[method] if self.seconds[method] > 0 else None


def _report(entries: Sequence[Entry], keys: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What the meta file says of all entries, and the lines for the user."""
    speeds, shown = Speeds(keys), {}
    for entry in entries:
        shown = speeds.note(entry)
    lines = [", ".join(f"{name} {value}" for name, value in shown.items())] if any(speeds.tokens.values()) else []
    base, ours = (speeds.rate(method) if method in keys else None for method in ("target", "speculative"))
    if base and ours:
        lines[0] += f", speculative/target {ours / base:.2f}x"
    blocks = [entry[keys["speculative"]] for entry in entries if "speculative" in keys and "error" not in entry]
    counts = tally(blocks)
    return {"equality": counts}, lines + ([verdict(counts)] if counts else [])
