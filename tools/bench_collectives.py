"""Time an all-gather between two CPU cores through shared memory and through gloo, interleaved in the same processes.

python tools/bench_collectives.py          # 896 float32 numbers from each rank, a hidden state of a 0.5B model
python tools/bench_collectives.py --numbers 4096 --repeats 5000
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import positive_int

if TYPE_CHECKING:
    from pdevis.parallel.shared_memory import SharedBuffer

PASSES = 10  # the repeats are spread over this many, which alternate between the two


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--numbers", type=positive_int, default=896, metavar="N", help="float32 numbers of each rank (default: 896)")
    add("--repeats", type=positive_int, default=2000, metavar="N", help="timings of each (default: 2000)")
    return parser


def run_rank(
    rank: int, core: int, buffer: SharedBuffer, rendezvous: str, numbers: int, repeats: int, results: Any
) -> None:
    """Time both in the process of one rank; rank 0 sends {name: seconds} through the pipe `results`."""
    import torch

    from pdevis.devices import use_cores
    from pdevis.parallel.collectives import DistributedCommunicator
    from pdevis.parallel.shared_memory import SharedMemoryCommunicator

    use_cores([core])
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    communicators = {
        "shared memory": SharedMemoryCommunicator(buffer, rank, timeout_seconds=60.0, heartbeat=lambda: None),
        "gloo": DistributedCommunicator(rank, 2, heartbeat=lambda: None),
    }
    item = torch.randn(1, numbers)
    samples: dict[str, list[float]] = {name: [] for name in communicators}
    for _ in range(PASSES):
        for name, communicator in communicators.items():
            for _ in range(repeats // PASSES + 1):
                begin = time.perf_counter()
                communicator.all_gather([item], [0, 1], item.shape, item)
                samples[name].append(time.perf_counter() - begin)
    if rank == 0:
        results.send(samples)
    torch.distributed.destroy_process_group()


def run(args: Namespace) -> None:
    from torch import multiprocessing

    from pdevis.devices import available_cores
    from pdevis.parallel.shared_memory import SharedBuffer

    usable_cores = available_cores()
    if len(usable_cores) < 2:
        raise ValueError("needs two cores; this process may use only one")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        buffer, rendezvous = SharedBuffer(2, 8 * args.numbers), str(Path(folder) / "ranks")
        processes = [
            context.Process(target=run_rank, args=(rank, core, buffer, rendezvous, args.numbers, args.repeats, sender))
            for rank, core in enumerate(usable_cores[:2])
        ]
        for process in processes:
            process.start()
        samples = receiver.recv()
        for process in processes:
            process.join()
    for name, seconds in samples.items():
        micros = sorted(1e6 * value for value in seconds)
        print(f"{name}: median {statistics.median(micros):.1f} µs, 90 % below {micros[int(0.9 * len(micros))]:.1f} µs")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
