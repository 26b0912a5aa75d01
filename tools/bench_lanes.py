"""Time the forwards of a draft on several lists of cores: the first one of a round, and those after it.

python tools/bench_lanes.py --model FOLDER                         # cpu:0 and cpu:0,cpu:1, interleaved
python tools/bench_lanes.py --model FOLDER --draft_mode skip --tokens 1
python tools/bench_lanes.py --model FOLDER --each                  # print every repeat: is the speed stable?
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pdevis.cli import Parser, add_draft_flags, draft_config, run_main
from pdevis.config import DecodeConfig
from pdevis.util.argtypes import positive_int

if TYPE_CHECKING:
    from pdevis.parallel.worker_pool import WorkerPool

PROMPT = list(range(1000, 1120))  # ids
DRAFTED_ID = 5  # any id
LATER_FORWARDS = 4  # forwards of a draft after its first one


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="folder or hub name of a drafter")
    add("--precision", default="int8", metavar="FORMAT", help="weight format (default: int8)")
    add("--devices", default="cpu:0;cpu:0,cpu:1", metavar="LISTS", help="device lists (default: cpu:0;cpu:0,cpu:1)")
    add("--tokens", type=positive_int, default=3, metavar="N", help="tokens of the first forward (default: 3)")
    add("--draft_vocab", type=positive_int, metavar="N", help="the drafter proposes ids below N only (default: all)")
    add("--repeats", type=positive_int, default=40, metavar="N", help="timings of each (default: 40)")
    add("--each", action="store_true", help="print each repeat: ms of a later forward on each list of devices")
    add_draft_flags(parser)
    return parser


@dataclass
class TimedPool:
    """The drafter on one list of devices, with its times."""

    devices: str
    workers: WorkerPool
    first_ms: list[float] = field(default_factory=list)
    later_ms: list[float] = field(default_factory=list)  # mean of the forwards after the first

    def time_draft(self, tokens: int) -> None:
        """Time a draft of one forward over `tokens` tokens, then one with further forwards over one token each."""
        self.workers.call("open", PROMPT, DecodeConfig(eos_ids=()))
        self.workers.call("draft", [], 1, None, 0)
        confirmed = [DRAFTED_ID] * tokens
        first = self.workers.call("draft", confirmed, 1, None, 0).own_seconds
        all_forwards = self.workers.call("draft", confirmed, 1 + LATER_FORWARDS, None, 0).own_seconds
        self.first_ms.append(1e3 * first)
        self.later_ms.append(1e3 * (all_forwards - first) / LATER_FORWARDS)


def start_pools(args: Namespace) -> list[TimedPool]:
    """Load the drafter on each list of devices."""
    import torch

    from pdevis.devices import find_device_slots
    from pdevis.loading.checkpoint import find_source, read_config
    from pdevis.loading.model_builder import LoadSpec
    from pdevis.parallel.worker_pool import WorkerPool

    source = find_source(args.model)
    config = read_config(source)
    spec = LoadSpec(
        args.model,
        "drafter",
        source=source,
        config=config,
        device=torch.device("cpu"),
        precision=args.precision,
        head_rows=args.draft_vocab,
    )
    return [
        TimedPool(devices, WorkerPool(spec, find_device_slots(devices, "--devices"), target_vocab=config.vocab_size))
        for devices in args.devices.split(";")
    ]


def show_times(name: str, pools: Sequence[TimedPool], times_of: Callable[[TimedPool], list[float]]) -> None:
    """Print medians and quartiles, and the speedup over the first list of devices."""
    baseline = pools[0]
    for pool in pools:
        low, middle, high = statistics.quantiles(times_of(pool), n=4)
        line = f"{name:20} {pool.devices:12} {middle:6.2f} ms (quartiles {low:.2f} to {high:.2f})"
        if pool is not baseline:
            speedups = [a / b for a, b in zip(times_of(baseline), times_of(pool), strict=True)]
            low, middle, high = statistics.quantiles(speedups, n=4)
            line += f", {middle:.2f}x {baseline.devices} ({low:.2f} to {high:.2f})"
        print(line)


def run(args: Namespace) -> None:
    if args.repeats < 2:
        raise ValueError(f"--repeats: {args.repeats} must be at least 2, for quartiles")
    rule = draft_config(args)
    rule = replace(rule, mode="parallel") if rule.mode == "auto" else rule
    pools = start_pools(args)
    try:
        for pool in pools:
            pool.workers.call("configure", rule)
        for _ in range(args.repeats):
            for pool in pools:
                pool.time_draft(args.tokens)
            if args.each:
                print(time.strftime("%X"), *(f"{pool.later_ms[-1]:6.2f}" for pool in pools), flush=True)
    finally:
        for pool in pools:
            pool.workers.close()
    show_times(f"{args.tokens} tokens, first", pools, lambda pool: pool.first_ms)
    show_times(f"1 token, {rule.mode}", pools, lambda pool: pool.later_ms)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
