"""Time an exchange between two CPU cores: through shared memory and through gloo, in turn in the same two processes.

python tools/bench_links.py                # 896 float32 numbers from each rank, a hidden state of a 0.5B model
python tools/bench_links.py --numbers 4096 --repeats 5000
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import positive


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--numbers", type=positive, default=896, metavar="N", help="a rank's part (default: 896)")
    parser.add_argument("--repeats", type=positive, default=2000, metavar="N", help="of each (default: 2000)")
    return parser


def work(rank: int, core: int, board: Any, meeting: str, args: Namespace, answer: Any) -> None:
    """One rank: both links in turn, ten times."""
    import torch

    from pdevis.devices import use_cores
    from pdevis.parallel.collectives import DistributedCommunicator
    from pdevis.parallel.shared_memory import SharedMemoryCommunicator

    use_cores([core])
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    links = {
        "shared memory": SharedMemoryCommunicator(board, rank, timeout_seconds=60.0, heartbeat=lambda: None),
        "gloo": DistributedCommunicator(rank, 2, heartbeat=lambda: None),
    }
    mine, seconds = torch.randn(1, args.numbers), {name: [] for name in links}
    for _ in range(10):
        for name, link in links.items():
            for _ in range(args.repeats // 10 + 1):
                begin = time.perf_counter()
                link.all_gather([mine], [0, 1], mine.shape, mine)
                seconds[name].append(time.perf_counter() - begin)
    if rank == 0:
        answer.send(seconds)
    torch.distributed.destroy_process_group()


def run(args: Namespace) -> None:
    from torch import multiprocessing

    from pdevis.devices import available_cores
    from pdevis.parallel.shared_memory import SharedBuffer

    there = available_cores()
    if len(there) < 2:
        raise ValueError("needs two cores; this process may use one only")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        rest = SharedBuffer(2, 8 * args.numbers), str(Path(folder) / "ranks"), args, theirs
        ranks = [context.Process(target=work, args=(rank, there[rank], *rest)) for rank in range(2)]
        for process in ranks:
            process.start()
        found = ours.recv()
        for process in ranks:
            process.join()
    for name, seconds in found.items():
        micro = sorted(1e6 * each for each in seconds)
        print(f"{name}: median {statistics.median(micro):.1f} µs, 90 % below {micro[int(0.9 * len(micro))]:.1f} µs")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
