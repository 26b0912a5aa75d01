"""Measure the costs that `python -m pdevis.simulate` asks for on two CPU cores, and print them as its flags.

    python -m pdevis.simulate.measure --model FOLDER-0.5b                          # a drafter on one core and on two
    python -m pdevis.simulate.measure --model FOLDER-0.5b --target FOLDER-1.5b     # a drafter and a target at once

One process per core holds the whole drafter and this core's part of one whose MLPs are split by rows. Sublayers are
timed in forwards of one token, layer after layer, so that weights come from memory as they do in decoding: on one core
while the other one waits, on both at once, and on both with the exchanges. With --target the first core drafts and the
second verifies, each alone and both at once.
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import positive_int

if TYPE_CHECKING:
    from torch import Tensor

    from pdevis.devices import DeviceSlot
    from pdevis.loading.model_builder import LoadSpec
    from pdevis.parallel.shared_memory import SharedBuffer

CONTEXT_TOKENS = 120
VERIFIED_TOKENS = 4  # of a target forward
PASS_TOKENS = 4  # of the exact pass that begins a round, after a draft of which most tokens were accepted
LOOP_SECONDS = 1.0  # of repeated drafting, of verifying, and of both at once
REPEATS_PER_LOOP = 8  # that such a loop counts for
CORES = "cpu:0,cpu:1"


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.simulate.measure", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="folder or hub name of a drafter")
    add("--precision", default="int8", metavar="FORMAT", help="weight format of the drafter (default: int8)")
    add("--draft_vocab", type=positive_int, metavar="N", help="the drafter proposes ids below N only (default: all)")
    add("--target", metavar="NAME", help="time this target and the drafter at once, rather than two cores of a drafter")
    add("--target_precision", default="packed", metavar="FORMAT", help="weight format of the target (default: packed)")
    add("--repeats", type=positive_int, default=40, metavar="N", help="number of timings of each (default: 40)")
    return parser


# ---- in the process of each core ----


@dataclass(frozen=True)
class DrafterTimes:
    """Times of one core for one draft step: of all attentions, of all MLPs, and of the output head.

    "contended": while the other core does the same. "split": this core's rows of every MLP.
    """

    step_seconds: float
    pass_seconds: float  # of an exact forward over `PASS_TOKENS` tokens
    attention_seconds: float
    mlp_seconds: float
    head_seconds: float
    contended_head_seconds: float
    split_mlp_seconds: float
    contended_split_mlp_seconds: float
    exchanged_split_mlp_seconds: float  # contended, with the exchanges
    layer_seconds: float = 0.0  # of one layer, and of two as one wide layer; set after the other times
    wide_pair_seconds: float = 0.0


@dataclass(frozen=True)
class ForwardTimes:
    """Times of a forward of one model on one core, alone and while the other core runs the other model."""

    alone_seconds: float
    contended_seconds: float


class CoreTimer:
    """One core's end of all timings: it works in a timing, or waits until the other core is done."""

    def __init__(self, rank: int, buffer: SharedBuffer) -> None:
        import torch

        from pdevis.parallel.shared_memory import SharedMemoryCommunicator

        self.rank = rank
        self.communicator = SharedMemoryCommunicator(buffer, rank, timeout_seconds=600.0, heartbeat=lambda: None)
        self._empty = torch.zeros(1)

    def seconds(self, ranks: Sequence[int], work: Callable[[], Any]) -> float:
        """Return the time of some work that the cores `ranks` do at the same time; 0 for a core that waits."""
        self._barrier()
        begin = time.perf_counter()
        if self.rank in ranks:
            work()
        seconds = time.perf_counter() - begin if self.rank in ranks else 0.0
        self._barrier()
        return seconds

    def _barrier(self) -> None:
        self.communicator.all_gather([self._empty], [0, 1], self._empty.shape, self._empty)


class DrafterTimer:
    """Times the parts of a drafter on one core."""

    def __init__(self, core: CoreTimer, spec: LoadSpec) -> None:
        import torch

        from pdevis.loading.model_builder import build_model
        from pdevis.models.layers import ShardSpec
        from pdevis.parallel.lanes import DeviceLanes

        self.core = core
        self.whole = build_model(spec)
        self.part = build_model(spec, ShardSpec(core.rank, 2, split_mlps=True))
        self.lanes = DeviceLanes(self.part, core.communicator, spec.head_rows or spec.config.vocab_size)
        ids = torch.arange(CONTEXT_TOKENS + PASS_TOKENS) % self.whole.vocab_size
        self.whole.prefill(ids[:CONTEXT_TOKENS])
        self.pass_ids = ids[CONTEXT_TOKENS:]
        self.ids = self.pass_ids[:1]
        self.inner = torch.randn(1, self.whole.weights.mlp_size)

    def medians(self, repeats: int) -> DrafterTimes:
        """Return the median of each time."""
        samples = [self._sample() for _ in range(repeats)]
        names = [field.name for field in fields(DrafterTimes)]
        times = DrafterTimes(**{name: median(getattr(sample, name) for sample in samples) for name in names})
        wide: dict[str, float] = {}
        self.core.seconds([0], lambda: wide.update(self._wide_pairs()))
        return replace(times, **wide)

    def _wide_pairs(self) -> dict[str, float]:
        from pdevis.calibrate.group_costs import GroupForm, time_forms

        single, pair = GroupForm(1, 1, "both"), GroupForm(2, 2, "both")
        seconds = time_forms(self.whole, [single, pair], self.ids.tolist())
        return {"layer_seconds": seconds[single], "wide_pair_seconds": seconds[pair]}

    def _sample(self) -> DrafterTimes:
        first, both = [0], [0, 1]
        step = self.core.seconds(first, partial(self._step, self.ids))
        exact_pass = self.core.seconds(first, partial(self._step, self.pass_ids))
        attention, mlp = self._sublayers(first, self.whole.mlp)
        head = self._head(first)
        _, split_mlp = self._sublayers(first, self._split_mlp)
        _, contended_split_mlp = self._sublayers(both, self._split_mlp)
        contended_head = self._head(both)
        _, exchanged_split_mlp = self._sublayers(both, lambda layer, h: self.lanes.mlp([layer], [h]))
        return DrafterTimes(
            step_seconds=step,
            pass_seconds=exact_pass,
            attention_seconds=attention,
            mlp_seconds=mlp,
            head_seconds=head,
            contended_head_seconds=contended_head,
            split_mlp_seconds=split_mlp,
            contended_split_mlp_seconds=contended_split_mlp,
            exchanged_split_mlp_seconds=exchanged_split_mlp,
        )

    def _step(self, ids: Tensor) -> None:
        self.whole.forward(ids).argmax()
        self.whole.rewind(CONTEXT_TOKENS)

    def _sublayers(self, ranks: Sequence[int], mlp: Callable[[int, Tensor], Any]) -> tuple[float, float]:
        """Return the times of all attentions and of all MLPs, run layer after layer."""
        step, h = self.whole.begin(1), self.whole.embed(self.ids)
        attention_seconds = mlp_seconds = 0.0
        for layer in range(len(self.whole.layers)):
            attention_seconds += self.core.seconds(ranks, partial(self.whole.attention, layer, h, step))
            mlp_seconds += self.core.seconds(ranks, partial(mlp, layer, h))
        return attention_seconds, mlp_seconds

    def _head(self, ranks: Sequence[int]) -> float:
        h = self.whole.embed(self.ids)
        return self.core.seconds(ranks, lambda: self.whole.logits(h).argmax())

    def _split_mlp(self, layer: int, h: Tensor) -> None:
        self.part.mlp_inner(layer, h)
        self.part.mlp_outer(layer, self.inner)


def time_forwards(core: CoreTimer, drafter: LoadSpec, target: LoadSpec, repeats: int) -> ForwardTimes:
    """Return median times of a draft step (rank 0) or of a verification (rank 1)."""
    import torch

    from pdevis.loading.model_builder import build_model

    model = build_model(target if core.rank else drafter)
    tokens = VERIFIED_TOKENS if core.rank else 1
    ids = torch.arange(CONTEXT_TOKENS + tokens) % model.vocab_size
    model.prefill(ids[:CONTEXT_TOKENS])
    alone: list[float] = []
    contended: list[float] = []

    def loop(samples: list[float]) -> None:
        end = time.perf_counter() + LOOP_SECONDS
        while time.perf_counter() < end:
            begin = time.perf_counter()
            model.forward(ids[CONTEXT_TOKENS:])
            model.rewind(CONTEXT_TOKENS)
            samples.append(time.perf_counter() - begin)

    for _ in range(-(-repeats // REPEATS_PER_LOOP)):
        for rank in (0, 1):
            core.seconds([rank], partial(loop, alone))
        core.seconds([0, 1], partial(loop, contended))
    return ForwardTimes(median(alone), median(contended))


def run_core(
    rank: int, slot: DeviceSlot, buffer: SharedBuffer, specs: Sequence[LoadSpec], repeats: int, results: Any
) -> None:
    """Measure in the process of one core, and send the times through the pipe `results`."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main process ends the others
    slot.activate()
    core = CoreTimer(rank, buffer)
    with torch.inference_mode():
        if len(specs) > 1:
            results.send(time_forwards(core, *specs, repeats))
        else:
            results.send(DrafterTimer(core, *specs).medians(repeats))


# ---- in the main process ----


def find_models(args: Namespace) -> list[LoadSpec]:
    """Return the drafter and, with --target, the target. Raises ValueError for a model that cannot be timed."""
    import torch

    from pdevis.loading.checkpoint import find_source, read_config
    from pdevis.loading.model_builder import LoadSpec
    from pdevis.loading.weights.families import unsupported_reason
    from pdevis.models.linear import resolve_precision

    cpu = torch.device("cpu")

    def load_spec(name: str, role: str, precision: str) -> LoadSpec:
        precision = resolve_precision(precision, cpu, role)
        source = find_source(name)
        config = read_config(source)
        if reason := unsupported_reason(config):
            raise ValueError(f"{name}: must be a model whose sublayers can be timed, not {reason}")
        return LoadSpec(name, role, source=source, config=config, device=cpu, precision=precision)

    specs = [replace(load_spec(args.model, "drafter", args.precision), head_rows=args.draft_vocab)]
    if args.target:
        specs.append(load_spec(args.target, "target", args.target_precision))
    return specs


def run_on_two_cores(specs: Sequence[LoadSpec], repeats: int) -> tuple[Any, Any]:
    """Return the times of the first and of the second core. Raises WorkerError if a process dies."""
    from torch import multiprocessing

    from pdevis.devices import find_device_slots
    from pdevis.parallel.shared_memory import SharedBuffer
    from pdevis.parallel.worker_pool import WorkerError, max_exchange_bytes

    slots = find_device_slots(CORES, "this measurement")
    context = multiprocessing.get_context("spawn")
    buffer = SharedBuffer(2, max_exchange_bytes(specs[0], 2))
    pipes = [context.Pipe(duplex=False) for _ in slots]
    processes = [
        context.Process(target=run_core, args=(rank, slot, buffer, specs, repeats, pipes[rank][1]), daemon=True)
        for rank, slot in enumerate(slots)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:  # a process that dies then closes its pipe, and recv raises EOFError
        sender.close()
    try:
        first, second = (receiver.recv() for receiver, _ in pipes)
    except EOFError:
        raise WorkerError("a process of this measurement died; its error is above") from None
    return first, second


def show_drafter(first: DrafterTimes, second: DrafterTimes, layers: int) -> None:
    """Print the times of a drafter, and the flags that they mean."""
    contended = (first.contended_split_mlp_seconds + second.contended_split_mlp_seconds) / 2
    exchanged = (first.exchanged_split_mlp_seconds + second.exchanged_split_mlp_seconds) / 2
    contended_head = (first.contended_head_seconds + second.contended_head_seconds) / 2
    split, whole, attention = first.split_mlp_seconds, first.mlp_seconds, first.attention_seconds
    repeated = min(max(0.0, 2 * split - whole), split, whole)  # in a tiny model nearly everything is repeated
    contention = max(1.0, (contended - repeated) / (split - repeated)) if split > repeated else 1.0
    step_ms, pass_ms = 1e3 * first.step_seconds, 1e3 * first.pass_seconds
    print(
        f"a step {step_ms:.2f} ms ({pass_ms:.2f} over {PASS_TOKENS} tokens): attentions {1e3 * attention:.2f}, MLPs "
        f"{1e3 * whole:.2f}, the head {1e3 * first.head_seconds:.2f} ({1e3 * contended_head:.2f} while the other core "
        f"runs one)\n"
        f"MLPs split by rows: {1e3 * split:.2f} alone, {1e3 * contended:.2f} on both cores, {1e3 * exchanged:.2f} with "
        f"exchanges\n"
        f"a layer {1e3 * first.layer_seconds:.3f}, two as one wide layer {1e3 * first.wide_pair_seconds:.3f}"
    )
    flags = {
        "draft_ms": step_ms,
        "token_ms": max(0.0, pass_ms - step_ms) / (PASS_TOKENS - 1),
        "attention_share": attention / (attention + whole),
        "head_share": first.head_seconds / first.step_seconds,
        "repeated_share": repeated / whole,
        "kernel_share": min(max(0.0, 2 - first.wide_pair_seconds / first.layer_seconds), 1.0),
        "contention": contention,
        "link_us": 1e6 * max(0.0, exchanged - contended) / (2 * layers),
    }
    print("--mlps rows " + " ".join(f"--{name} {value:.3g}" for name, value in flags.items()))


def show_pair(drafter: ForwardTimes, target: ForwardTimes) -> None:
    """Print the times of a drafter and a target, and the flags that they mean."""
    for name, times in (("a draft step", drafter), (f"a target forward over {VERIFIED_TOKENS} tokens", target)):
        print(f"{name}: {1e3 * times.alone_seconds:.2f} ms alone, {1e3 * times.contended_seconds:.2f} ms at once")
    slowdown = sum(times.contended_seconds / times.alone_seconds for times in (drafter, target)) / 2
    print(
        f"--draft_ms {1e3 * drafter.alone_seconds:.3g} --target_ms {1e3 * target.alone_seconds:.3g} "
        f"--target_contention {max(1.0, slowdown):.3g}"
    )


def run(args: Namespace) -> None:
    specs = find_models(args)
    first, second = run_on_two_cores(specs, args.repeats)
    if args.target:
        show_pair(first, second)
    else:
        show_drafter(first, second, layers=specs[0].config.num_hidden_layers)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
