"""Time what `python -m pdevis.simulate` asks for, on two CPU cores, and print it as its flags.

python tools/bench_costs.py --model FOLDER-0.5b                          # a drafter on one core and on two
python tools/bench_costs.py --model FOLDER-0.5b --target FOLDER-1.5b --target_precision int8 --draft_vocab 32768

Each core has a process with the whole drafter and its part of one that is cut by rows. Sublayers are timed in forwards
of one token, layer after layer, so that weights come from memory as they do in decoding: on one core while the other
one waits, on both at once, and on both with the exchanges. With --target the first core drafts and the second verifies,
each alone and both at once.
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import positive

CONTEXT = 120  # tokens
VERIFIED = 4  # tokens of a target forward
TURN_SECONDS = 1.0  # of drafting, of verifying, and of both at once
TURN_REPEATS = 8  # that such a turn counts for


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="NAME", help="folder or hub name of a drafter")
    parser.add_argument("--precision", default="int8", metavar="FORMAT", help="of its weights (default: int8)")
    parser.add_argument("--draft_vocab", type=positive, metavar="N", help="ids that may be drafted (default: all)")
    parser.add_argument("--target", metavar="NAME", help="time a target beside the drafter, rather than two cores")
    parser.add_argument("--target_precision", default="packed", metavar="FORMAT", help="default: packed")
    parser.add_argument("--repeats", type=positive, default=40, metavar="N", help="of each (default: 40)")
    return parser


class Core:
    """One of the two processes: it takes part in every timing, or waits until it is over."""

    def __init__(self, rank: int, board: Any) -> None:
        import torch

        from pdevis.parallel.shared_memory import SharedMemoryCommunicator

        self.rank = rank
        self.link = SharedMemoryCommunicator(board, rank, timeout_seconds=600.0, heartbeat=lambda: None)
        self.empty = torch.zeros(1)

    def meet(self) -> None:
        self.link.all_gather([self.empty], [0, 1], self.empty.shape, self.empty)

    def timed(self, ranks: Sequence[int], work: Callable[[], Any]) -> float:
        """Seconds of some work that these cores do at the same time; 0 for one that waits."""
        self.meet()
        begin = time.perf_counter()
        if self.rank in ranks:
            work()
        took = time.perf_counter() - begin if self.rank in ranks else 0.0
        self.meet()
        return took


def time_drafter(core: Core, plan: Any, repeats: int) -> dict[str, float]:
    """Medians in seconds: of a step, of all its attentions, MLPs and its head, and of MLPs cut by rows."""
    import torch

    from pdevis.loading.model_builder import build_model
    from pdevis.models.layers import ShardSpec
    from pdevis.parallel.lanes import DeviceLanes

    whole, part = build_model(plan), build_model(plan, ShardSpec(core.rank, 2, split_mlps=True))
    lanes = DeviceLanes(part, core.link, plan.head_rows or plan.config.vocab_size)
    ids = torch.arange(CONTEXT + 1) % whole.vocab_size
    whole.prefill(ids[:CONTEXT])
    inner = torch.randn(1, whole.weights.mlp_size)
    found: dict[str, list[float]] = {}

    def layers(name: str, ranks: Sequence[int], mlp: Callable[[int, Any], Any]) -> None:
        step, h, sums = whole.begin(1), whole.embed(ids[CONTEXT:]), [0.0, 0.0]
        for layer in range(len(whole.layers)):
            sums[0] += core.timed(ranks, partial(whole.attention, layer, h, step))
            sums[1] += core.timed(ranks, partial(mlp, layer, h))
        found.setdefault(f"{name}: attention", []).append(sums[0])
        found.setdefault(name, []).append(sums[1])

    def head(name: str, ranks: Sequence[int]) -> None:
        h = whole.embed(ids[CONTEXT:])
        found.setdefault(f"{name}: head", []).append(core.timed(ranks, lambda: whole.logits(h).argmax()))

    def step() -> None:
        whole.forward(ids[CONTEXT:]).argmax()
        whole.rewind(CONTEXT)

    def rows(layer: int, h: Any) -> None:
        part.mlp_inner(layer, h)
        part.mlp_outer(layer, inner)

    for _ in range(repeats):
        found.setdefault("step", []).append(core.timed([0], step))
        layers("whole", [0], whole.mlp)
        head("whole", [0])
        layers("half", [0], rows)
        layers("both", [0, 1], rows)
        head("both", [0, 1])
        layers("lanes", [0, 1], lambda layer, h: lanes.mlp([layer], [h]))
    return {name: median(seconds) for name, seconds in found.items()} | {"layers": len(whole.layers)}


def time_pair(core: Core, drafter: Any, target: Any, repeats: int) -> dict[str, float]:
    """Seconds of a draft step and of a verification, each alone and at once: medians."""
    import torch

    from pdevis.loading.model_builder import build_model

    model = build_model(target if core.rank else drafter)
    tokens = VERIFIED if core.rank else 1
    ids = torch.arange(CONTEXT + tokens) % model.vocab_size
    model.prefill(ids[:CONTEXT])
    found: dict[str, list[float]] = {"alone": [], "at once": []}

    def loop(name: str) -> None:
        until = time.perf_counter() + TURN_SECONDS
        while time.perf_counter() < until:
            begin = time.perf_counter()
            model.forward(ids[CONTEXT:])
            model.rewind(CONTEXT)
            found[name].append(time.perf_counter() - begin)

    for _ in range(-(-repeats // TURN_REPEATS)):
        for rank in (0, 1):
            core.timed([rank], partial(loop, "alone"))
        core.timed([0, 1], partial(loop, "at once"))
    return {name: median(each) for name, each in found.items()}


def work(rank: int, place: Any, board: Any, plans: Sequence[Any], repeats: int, answer: Any) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    place.activate()
    core = Core(rank, board)
    with torch.inference_mode():
        found = time_pair(core, *plans, repeats) if len(plans) > 1 else time_drafter(core, *plans, repeats)
    answer.send(found)


def run(args: Namespace) -> None:
    import torch
    from torch import multiprocessing

    from pdevis.devices import find_device_slots
    from pdevis.loading.checkpoint import find_source, read_config
    from pdevis.loading.model_builder import LoadSpec
    from pdevis.loading.weight_reader import unsupported_reason
    from pdevis.models.linear import resolve_precision
    from pdevis.parallel.shared_memory import SharedBuffer
    from pdevis.parallel.worker_pool import WorkerError, max_exchange_bytes

    cpu = torch.device("cpu")

    def plan_of(name: str, role: str, precision: str) -> Any:
        precision = resolve_precision(precision, cpu, role)
        source = find_source(name)
        config = read_config(source)
        if reason := unsupported_reason(config):
            raise ValueError(f"{name}: must be a model whose sublayers can be timed, not {reason}")
        return LoadSpec(name, role, source=source, config=config, device=cpu, precision=precision)

    plans = [replace(plan_of(args.model, "drafter", args.precision), head_rows=args.draft_vocab)]
    if args.target:
        plans.append(plan_of(args.target, "target", args.target_precision))
    places = find_device_slots("cpu:0,cpu:1", "this bench")
    context = multiprocessing.get_context("spawn")
    board = SharedBuffer(2, max_exchange_bytes(plans[0], 2))
    pipes = [context.Pipe(duplex=False) for _ in places]
    processes = [
        context.Process(target=work, args=(rank, place, board, plans, args.repeats, pipes[rank][1]), daemon=True)
        for rank, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    for _, theirs in pipes:  # so that a process that dies is an end of file
        theirs.close()
    try:
        found = [ours.recv() for ours, _ in pipes]
    except EOFError:
        raise WorkerError("a process of this bench died; it says why above") from None
    if args.target:
        show_pair(*found)
    else:
        show_drafter(*found)


def show_drafter(first: dict[str, float], second: dict[str, float]) -> None:
    both, lanes = ((first[name] + second[name]) / 2 for name in ("both", "lanes"))
    half, whole, attention = (first[name] for name in ("half", "whole", "whole: attention"))
    repeated = min(max(0.0, 2 * half - whole), half, whole)  # of a tiny model all is repeated, give or take
    contention = max(1.0, (both - repeated) / (half - repeated)) if half > repeated else 1.0
    link = max(0.0, lanes - both) / (2 * first["layers"])
    head = first["whole: head"]
    contended = (first["both: head"] + second["both: head"]) / 2
    print(
        f"a step {1e3 * first['step']:.2f} ms: attentions {1e3 * attention:.2f}, MLPs "
        f"{1e3 * whole:.2f}, the head {1e3 * head:.2f} ({1e3 * contended:.2f} with another one beside it)\n"
        f"MLPs cut by rows: {1e3 * half:.2f} alone, {1e3 * both:.2f} on both cores, {1e3 * lanes:.2f} with "
        f"exchanges"
    )
    shares = {
        "draft_ms": 1e3 * first["step"],
        "attention_share": attention / (attention + whole),
        "head_share": head / first["step"],
        "repeated_share": repeated / whole,
        "contention": contention,
        "link_us": 1e6 * link,
    }
    print("--mlps rows " + " ".join(f"--{name} {value:.3g}" for name, value in shares.items()))


def show_pair(drafter: dict[str, float], target: dict[str, float]) -> None:
    for name, each in (("a draft step", drafter), (f"a target forward over {VERIFIED} tokens", target)):
        print(f"{name}: {1e3 * each['alone']:.2f} ms alone, {1e3 * each['at once']:.2f} ms at once")
    slowdown = sum(each["at once"] / each["alone"] for each in (drafter, target)) / 2
    print(
        f"--draft_ms {1e3 * drafter['alone']:.3g} --target_ms {1e3 * target['alone']:.3g} "
        f"--target_contention {max(1.0, slowdown):.3g}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
