"""Time the fused product (pdevis/models/static/fused_forward.py) on a CUDA device against the bare one of torch.

    python tools/gpu/bench_fused.py                                   # the shapes of three models
    python tools/gpu/bench_fused.py --blocks 16x256x5,64x256x5,64x256x3 --splits 1,2,4

A block is output columns x input columns x stages of a program; a split is how many programs share a sum, as far as
the product's size allows it. Each time is that of one launch in a graph over weights that no cache holds, in µs for one
token. The floor is bytes of weights over copy bandwidth.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import product as combinations
from typing import Any

from pdevis.cli import Parser, run_main
from pdevis.util.argtypes import comma_list, positive_int
from pdevis.util.console import MISSING, make_console, make_table

# output and input size, and what surrounds the product
SHAPES = {
    "qwen-0.6b qkv": (4096, 1024, "norm"),
    "qwen-0.6b output": (1024, 2048, "residual"),
    "qwen-0.6b gate-up": (3072, 1024, "gate"),
    "qwen-0.6b down": (1024, 3072, "residual"),
    "llama-1b qkv": (3072, 2048, "norm"),
    "llama-1b output": (2048, 2048, "residual"),
    "llama-1b gate-up": (8192, 2048, "gate"),
    "llama-1b down": (2048, 8192, "residual"),
    "llama-8b qkv": (6144, 4096, "norm"),
    "llama-8b output": (4096, 4096, "residual"),
    "llama-8b gate-up": (14336, 4096, "gate"),
    "llama-8b down": (4096, 14336, "residual"),
}
COLD_BYTES = 300 << 20  # of weights, more than a GPU's cache holds
REPEATS = 5
DEFAULT_BLOCKS = "16x256x5,32x256x5,64x256x5,64x256x3,64x128x5"


def parse_block(text: str) -> tuple[int, int, int]:
    """Return a block's three numbers. Raises ValueError for another form."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} must be like 64x256x5")
    return int(parts[0]), int(parts[1]), int(parts[2])


def seconds_in_graph(work: Callable[[Any], Any], weights: Sequence[Any]) -> float:
    """Return the seconds of one launch, of a graph of one launch for each weight."""
    import torch

    from pdevis.benchmarks.gpu.device_times import interleaved_medians
    from pdevis.models.static.graphs import CudaGraph

    graph, device = CudaGraph(weights[0].device), weights[0].device
    graph.capture(lambda: [work(weight) for weight in weights], lambda: None)
    with torch.inference_mode():
        return interleaved_medians({"": graph.replay}, device, REPEATS)[""] / len(weights)


def time_shape(name: str, blocks: Sequence[tuple[int, int, int]], splits: Sequence[int], bandwidth: float) -> list[str]:
    """Return the cells of a row: floor, torch, and each block and split."""
    import torch

    from pdevis.models.layers import RMSNorm
    from pdevis.models.linear import DenseLinear
    from pdevis.models.static import fused_forward

    size_out, size_in, kind = SHAPES[name]
    options = {"device": "cuda", "dtype": torch.bfloat16}
    rows = 2 * size_out if kind == "gate" else size_out
    weights = [torch.randn(rows, size_in, **options) for _ in range(2 + COLD_BYTES // (2 * rows * size_in))]
    x, residual = torch.randn(1, size_in, **options), torch.randn(1, size_out, **options)
    surroundings = {
        "norm": {"norm": RMSNorm(x[0], 1e-5)},
        "residual": {"residual": residual},
        "gate": {"norm": RMSNorm(x[0], 1e-5), "lane_size": size_out},
    }[kind]
    cells = [weights[0].nbytes / bandwidth, seconds_in_graph(lambda weight: x @ weight.t(), weights)]
    for (columns, depth, stages), parts in combinations(blocks, splits):
        fused_forward.BLOCK_OUT, fused_forward.BLOCK_IN = columns, depth
        fused_forward.MAX_STAGES = fused_forward.MAX_STAGES_OF_PARTS = stages
        limits = parts * -(-size_out // columns), torch.cuda.get_device_properties(0).shared_memory_per_block_optin
        fused_forward._device_limits = lambda device, limits=limits: limits
        work = lambda weight: fused_forward.product(x, DenseLinear(weight, None), **surroundings)  # noqa: E731
        cells.append(None if kind == "gate" and parts > 1 else seconds_in_graph(work, weights))
    return [MISSING if seconds is None else f"{1e6 * seconds:.1f}" for seconds in cells]


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    text = "names of products (default: all)"
    parser.add_argument("--shapes", type=comma_list(str), default=tuple(SHAPES), metavar="LIST", help=text)
    text = "output columns x input columns x stages (default: %(default)s)"
    parser.add_argument("--blocks", type=comma_list(parse_block), default=DEFAULT_BLOCKS, metavar="LIST", help=text)
    text = "programs that share a sum (default: %(default)s)"
    parser.add_argument("--splits", type=comma_list(positive_int), default="1,4", metavar="LIST", help=text)
    return parser


def run(args: Namespace) -> int:
    import torch

    from pdevis.benchmarks.gpu.device_times import copy_bandwidth

    if unknown := set(args.shapes) - set(SHAPES):
        raise ValueError(f"--shapes: {sorted(unknown)[0]!r} must be one of {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise ValueError("bench_fused.py needs a CUDA device; torch sees none")
    bandwidth = copy_bandwidth(torch.device("cuda:0"))
    names = [f"{'x'.join(map(str, block))}, {parts}" for block, parts in combinations(args.blocks, args.splits)]
    rows = [(name, *time_shape(name, args.blocks, args.splits, bandwidth)) for name in args.shapes]
    make_console().print(make_table(("µs", "floor", "torch", *names), rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
