"""Time the parts of a round one by one: forwards of k tokens, draft step, attention, MLP, products, head, verification.

    python tools/bench_round.py                       # the embedded model
    python tools/bench_round.py --model FOLDER --formats packed,int8 --seconds 2
    make bench

Medians and interquartile ranges by torch.utils.benchmark, after a context of 64 tokens, with torch's number of threads
(OMP_NUM_THREADS). Parts of a forward are named with the weight format of their model.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pdevis.cli import DEFAULT_TARGET, Parser, run_main
from pdevis.util.argtypes import bounded_float

if TYPE_CHECKING:
    from torch import Tensor, device

    from pdevis.models.stack import DecoderStack

WIDTHS = (1, 2, 4, 8)  # tokens of a forward
CONTEXT_TOKENS = 64
GAMMA = 4


@dataclass(frozen=True)
class Part:
    """One part to time. `run` does its work over `tokens` tokens."""

    name: str
    tokens: int
    run: Callable[[], Any]


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_TARGET, help="catalog key, hub id or folder (default: %(default)s)")
    add("--device", metavar="DEV", help="cpu, cuda, cuda:1 (default: cuda if there, else cpu)")
    add("--formats", metavar="LIST", help="weight formats of the products (default: all that the device has)")
    add("--target", metavar="FORMAT", default="auto", help="weight format of the target's parts (default: auto)")
    add("--drafter", metavar="FORMAT", default="auto", help="weight format of the drafter's parts (default: auto)")
    seconds = bounded_float(exclusive=True)
    add("--seconds", type=seconds, default=1.0, metavar="X", help="time spent on each part (default: %(default)s)")
    return parser


def find_formats(names: str | None, device: device) -> list[str]:
    """Return the weight formats named by the flag, or all that work on the device. Raises ValueError for others."""
    from pdevis.models.linear import FORMATS, resolve_precision

    if names:
        return [resolve_precision(name.strip(), device, "target") for name in names.split(",")]
    usable = []
    for name in FORMATS:
        try:
            usable.append(resolve_precision(name, device, "target"))
        except ValueError:
            continue
    return [name for name in usable if name != "float64"]


def forward_parts(stack: DecoderStack, role: str) -> Iterator[Part]:
    """Yield forwards of a stack, its sublayers and its head."""
    import torch

    ids = torch.randint(stack.vocab_size, (CONTEXT_TOKENS + max(WIDTHS),), device=stack.device)
    stack.prefill(ids[:CONTEXT_TOKENS])
    name = f"{role} ({stack.weights.precision})"
    layer = len(stack.layers) // 2

    def forward(tokens: Tensor) -> None:
        stack.forward(tokens)
        stack.rewind(CONTEXT_TOKENS)

    for k in WIDTHS:
        tokens = ids[CONTEXT_TOKENS : CONTEXT_TOKENS + k]
        h, step = stack.embed(tokens), stack.begin(k)
        yield Part(f"{name}: forward", k, lambda tokens=tokens: forward(tokens))
        yield Part(f"{name}: attention", k, lambda h=h, step=step: stack.attention(layer, h, step))
        yield Part(f"{name}: MLP", k, lambda h=h: stack.mlp(layer, h))
        yield Part(f"{name}: output head", k, lambda h=h: stack.logits(h))


def draft_parts(stack: DecoderStack) -> Iterator[Part]:
    """Yield a draft step of each mode: a forward of one token under the rule, and the choice of the next token."""
    import torch

    from pdevis.config import DraftConfig
    from pdevis.drafting.engine import DraftEngine

    ids = torch.randint(stack.vocab_size, (CONTEXT_TOKENS + 1,), device=stack.device)
    for mode in ("exact", "skip", "parallel"):
        engine = DraftEngine(stack, DraftConfig(mode=mode))

        def draft_step(engine: DraftEngine = engine) -> None:
            engine.draft(ids[CONTEXT_TOKENS:]).logits.argmax(-1, keepdim=True)
            stack.rewind(CONTEXT_TOKENS)

        stack.rewind(0)
        engine.exact(ids[:CONTEXT_TOKENS])  # the schedule is planned from this pass
        yield Part(f"drafter ({stack.weights.precision}): draft step, {mode}", 1, draft_step)


def product_parts(stack: DecoderStack, mlp_size: int, formats: Sequence[str]) -> Iterator[Part]:
    """Yield the matrix product of each weight format at the shapes of the model's four fused projections."""
    import torch

    from pdevis.models.linear import FORMATS, storage_dtype

    weights = stack.weights
    hidden = weights.embedding.shape[1]
    shapes = {
        "qkv": ((weights.heads + 2 * weights.kv_heads) * weights.head_dim, hidden),
        "output": (hidden, weights.heads * weights.head_dim),
        "gate_up": (2 * mlp_size, hidden),
        "down": (hidden, mlp_size),
    }
    for name in formats:
        dtype = storage_dtype(name)
        for projection, (rows, columns) in shapes.items():
            linear = FORMATS[name](torch.randn(rows, columns, dtype=dtype, device=stack.device) * 0.02, None)
            for k in WIDTHS:
                x = torch.randn(k, columns, dtype=dtype, device=stack.device)
                yield Part(f"{name}: {projection} {rows} x {columns}", k, lambda linear=linear, x=x: linear(x))


def verification_parts(stack: DecoderStack) -> Iterator[Part]:
    """Yield the greedy comparison of γ draft tokens with the target's logits, without the forward."""
    import torch

    from pdevis.decoding.verifier import accept_greedy

    logits = torch.randn(GAMMA + 1, stack.vocab_size, dtype=stack.weights.dtype, device=stack.device)
    draft_ids = logits.argmax(-1)[:GAMMA]
    yield Part(f"greedy verify, γ={GAMMA}", GAMMA + 1, lambda: accept_greedy(draft_ids, logits))


def load_stacks(args: Namespace, device: device) -> tuple[dict[str, DecoderStack], int]:
    """Return a stack for each role, and the inner size of an MLP. Raises ValueError for a model or format that
    cannot be loaded."""
    from pdevis.loading.checkpoint import find_source, read_model
    from pdevis.loading.weights.weight_reader import read_weights
    from pdevis.models.linear import resolve_precision, storage_dtype
    from pdevis.models.stack import DecoderStack

    source = find_source(args.model, lambda line: print(line, file=sys.stderr))
    stacks = {}
    for role in ("target", "drafter"):
        precision = resolve_precision(getattr(args, role), device, role)
        model = read_model(source, storage_dtype(precision), device)
        stacks[role] = DecoderStack(read_weights(model, precision, device, consume=True))
        mlp_size = model.config.intermediate_size
        del model
    return stacks, mlp_size


def run(args: Namespace) -> None:
    import torch
    from torch.utils.benchmark import Timer
    from tqdm import tqdm

    from pdevis.devices import check_device
    from pdevis.util.console import MISSING, make_console, make_table

    device = check_device(args.device)
    formats = find_formats(args.formats, device)
    stacks, mlp_size = load_stacks(args, device)
    threads = torch.get_num_threads()
    cells: dict[str, dict[int, str]] = {}
    with torch.inference_mode():
        parts = chain(
            forward_parts(stacks["target"], "target"),
            draft_parts(stacks["drafter"]),
            verification_parts(stacks["target"]),
            product_parts(stacks["target"], mlp_size, formats),
        )
        for part in (bar := tqdm(parts, unit=" parts", file=sys.stderr)):
            bar.set_description(f"{part.name}, k={part.tokens}", refresh=False)
            timer = Timer("run()", globals={"run": part.run}, num_threads=threads)
            times = timer.blocked_autorange(min_run_time=args.seconds)
            cells.setdefault(part.name, {})[part.tokens] = f"{1000 * times.median:.3f} ±{1000 * times.iqr:.3f}"
    widths = sorted({tokens for row in cells.values() for tokens in row})
    rows = [(name, *(row.get(tokens, MISSING) for tokens in widths)) for name, row in cells.items()]
    make_console().print(make_table(("ms (median ±IQR)", *(f"k={tokens}" for tokens in widths)), rows))
    print(f"{args.model} on {device}, {threads} threads, {CONTEXT_TOKENS} tokens of context")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
