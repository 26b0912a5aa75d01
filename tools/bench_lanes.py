"""Time the forwards of a draft on some cores: the one that begins a round, and those behind it.

python tools/bench_lanes.py --model FOLDER                         # cpu:0 and cpu:0,cpu:1, in turn
python tools/bench_lanes.py --model FOLDER --draft_mode skip --tokens 1
python tools/bench_lanes.py --model FOLDER --each                  # each repeat on a line: does it come in states?
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from pdevis.cli import Parser, add_draft_flags, draft_config, run_main
from pdevis.util.argtypes import positive

PROMPT = list(range(1000, 1120))


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="NAME", help="folder or hub name of a drafter")
    parser.add_argument("--precision", default="int8", metavar="FORMAT", help="of its weights (default: int8)")
    parser.add_argument("--devices", default="cpu:0;cpu:0,cpu:1", metavar="LISTS", help="default: cpu:0;cpu:0,cpu:1")
    parser.add_argument("--tokens", type=positive, default=3, metavar="N", help="of the first forward (default: 3)")
    parser.add_argument("--draft_vocab", type=positive, metavar="N", help="ids that may be drafted (default: all)")
    parser.add_argument("--repeats", type=positive, default=40, metavar="N", help="of each (default: 40)")
    parser.add_argument("--each", action="store_true", help="print each repeat: ms of a token on each list of devices")
    add_draft_flags(parser)
    return parser


def run(args: Namespace) -> None:
    if args.repeats < 2:
        raise ValueError(f"--repeats: {args.repeats} must be at least 2, for quartiles")
    import torch

    from pdevis.config import DecodeConfig
    from pdevis.devices import find_device_slots
    from pdevis.loading.checkpoint import find_source, read_config
    from pdevis.loading.model_builder import LoadSpec
    from pdevis.parallel.worker_pool import WorkerPool

    source = find_source(args.model)
    config = read_config(source)
    plan = LoadSpec(
        args.model,
        "drafter",
        source=source,
        config=config,
        device=torch.device("cpu"),
        precision=args.precision,
        head_rows=args.draft_vocab,
    )
    rule = draft_config(args)
    rule = replace(rule, mode="parallel") if rule.mode == "auto" else rule
    lists = args.devices.split(";")
    workers = [WorkerPool(plan, find_device_slots(each, "--devices"), target_vocab=config.vocab_size) for each in lists]
    what = (f"{args.tokens} tokens, first", f"1 token, {rule.mode}")
    times: dict[str, list[list[float]]] = {name: [[] for _ in lists] for name in what}
    try:
        for each in workers:
            each.call("configure", rule)
        for _ in range(args.repeats):
            for i, each in enumerate(workers):
                each.call("open", PROMPT, DecodeConfig(eos_ids=()))
                each.call("draft", [], 1, None, 0)
                alone = each.call("draft", [5] * args.tokens, 1, None, 0).seconds
                several = each.call("draft", [5] * args.tokens, 5, None, 0).seconds
                times[what[0]][i].append(1e3 * alone)
                times[what[1]][i].append(1e3 * (several - alone) / 4)
            if args.each:
                print(time.strftime("%X"), *(f"{column[-1]:6.2f}" for column in times[what[1]]), flush=True)
    finally:
        for each in workers:
            each.close()
    for name, columns in times.items():
        for devices, column in zip(lists, columns):
            low, middle, high = statistics.quantiles(column, n=4)
            print(f"{name:20} {devices:12} {middle:6.2f} ms (quartiles {low:.2f} to {high:.2f})", end="")
            if column is columns[0]:
                print()
                continue
            low, middle, high = statistics.quantiles([a / b for a, b in zip(columns[0], column)], n=4)
            print(f", {middle:.2f}x {lists[0]} ({low:.2f} to {high:.2f})")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
