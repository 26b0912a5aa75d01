"""Time the pieces of a round one by one: forwards of k tokens, a draft step, attention, MLP, products, head, verify.

    python tools/bench_pieces.py                       # the embedded model
    python tools/bench_pieces.py --model FOLDER --formats packed,int8 --seconds 2
    make bench

Medians and interquartile ranges by torch.utils.benchmark, behind a context of 64 tokens, with as many threads as torch
has (OMP_NUM_THREADS). Pieces of a forward are named with the weight format of the stack that they belong to. Not a
test: nothing is asserted, and pytest does not collect it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from pdevis.cli import DEFAULT_TARGET, Parser, run_main

WIDTHS = (1, 2, 4, 8)
CONTEXT = 64  # tokens in the cache
GAMMA = 4


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_TARGET, help="catalog key, hub id or folder (default: %(default)s)")
    parser.add_argument("--device", metavar="DEV", help="cpu, cuda, cuda:1 (default: cuda if there, else cpu)")
    parser.add_argument("--formats", metavar="LIST", help="weight formats (default: all that the device has)")
    parser.add_argument("--target", metavar="FORMAT", default="auto", help="of the target's pieces (default: auto)")
    parser.add_argument("--drafter", metavar="FORMAT", default="auto", help="of the drafter's pieces (default: auto)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="X", help="per timing (default: %(default)s)")
    return parser


def formats_of(asked: str | None, device: Any) -> list[str]:
    """The formats asked for, or all that work on the device. Raises ValueError for one that does not."""
    from pdevis.models.linear import FORMATS, resolve_precision

    if asked:
        return [resolve_precision(name.strip(), device, "target") for name in asked.split(",")]
    found = []
    for name in FORMATS:
        try:
            found.append(resolve_precision(name, device, "target"))
        except ValueError:
            continue
    return [name for name in found if name != "float64"]


def stack_pieces(stack: Any, role: str) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, tokens, call) of a stack's forward, its sublayers and its head."""
    import torch

    ids = torch.randint(stack.vocab_size, (CONTEXT + max(WIDTHS),), device=stack.device)
    stack.prefill(ids[:CONTEXT])
    name = f"{role} ({stack.weights.precision})"
    layer = len(stack.layers) // 2

    def forward(tokens: torch.Tensor) -> None:
        stack.forward(tokens)
        stack.rewind(CONTEXT)

    for k in WIDTHS:
        tokens = ids[CONTEXT : CONTEXT + k]
        h, step = stack.embed(tokens), stack.begin(k)
        yield f"{name}: forward", k, lambda tokens=tokens: forward(tokens)
        yield f"{name}: attention", k, lambda h=h, step=step: stack.attention(layer, h, step)
        yield f"{name}: MLP", k, lambda h=h: stack.mlp(layer, h)
        yield f"{name}: output head", k, lambda h=h: stack.logits(h)


def draft_pieces(stack: Any) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """A draft step of each mode: one forward of one token under the rule, and the choice of the next token."""
    import torch

    from pdevis.config import DraftConfig
    from pdevis.drafting.engine import DraftEngine

    ids = torch.randint(stack.vocab_size, (CONTEXT + 1,), device=stack.device)
    for mode in ("exact", "skip", "parallel"):
        engine = DraftEngine(stack, DraftConfig(mode=mode))

        def step(engine: DraftEngine = engine) -> None:
            engine.draft(ids[CONTEXT:]).logits.argmax(-1, keepdim=True)
            stack.rewind(CONTEXT)

        stack.rewind(0)
        engine.exact(ids[:CONTEXT])  # the plan comes from this pass
        yield f"drafter ({stack.weights.precision}): draft step, {mode}", 1, step


def product_pieces(stack: Any, inner: int, formats: Sequence[str]) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Each weight format's product at the shapes of the model's four fused projections."""
    import torch

    from pdevis.models.linear import FORMATS, storage_dtype

    w = stack.weights
    hidden = w.embedding.shape[1]
    shapes = {
        "qkv": ((w.heads + 2 * w.kv_heads) * w.head_dim, hidden),
        "output": (hidden, w.heads * w.head_dim),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    for name in formats:
        dtype = storage_dtype(name)
        for part, (rows, columns) in shapes.items():
            linear = FORMATS[name](torch.randn(rows, columns, dtype=dtype, device=stack.device) * 0.02, None)
            for k in WIDTHS:
                x = torch.randn(k, columns, dtype=dtype, device=stack.device)
                yield f"{name}: {part} {rows} x {columns}", k, lambda linear=linear, x=x: linear(x)


def verify_pieces(stack: Any) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The greedy comparison of γ draft tokens with the target's logits, the forward apart."""
    import torch

    from pdevis.decoding.verifier import accept_greedy
    from pdevis.generation import Draft

    logits = torch.randn(GAMMA + 1, stack.vocab_size, dtype=stack.weights.dtype, device=stack.device)
    draft = Draft(logits.argmax(-1)[:GAMMA].tolist())
    yield f"greedy verify, γ={GAMMA}", GAMMA + 1, lambda: accept_greedy(draft, logits)


def load(args: Namespace, device: Any) -> tuple[dict[str, Any], int]:
    """A stack for each role, and the size of an MLP. Raises ValueError for a model or format that cannot be had."""
    from pdevis.loading.checkpoint import find_source, read_model
    from pdevis.loading.weight_reader import read_weights
    from pdevis.models.linear import resolve_precision, storage_dtype
    from pdevis.models.stack import DecoderStack

    source = find_source(args.model, lambda line: print(line, file=sys.stderr))
    found = {}
    for role in ("target", "drafter"):
        precision = resolve_precision(getattr(args, role), device, role)
        model = read_model(source, storage_dtype(precision), device)
        found[role] = DecoderStack(read_weights(model, precision, device, consume=True))
        inner = model.config.intermediate_size
        del model
    return found, inner


def run(args: Namespace) -> None:
    if args.seconds <= 0:
        raise ValueError(f"--seconds: {args.seconds} must be above 0")
    import torch
    from torch.utils.benchmark import Timer
    from tqdm import tqdm

    from pdevis.loading.checkpoint import check_device
    from pdevis.util.console import make_console, make_table

    device = check_device(args.device)
    formats = formats_of(args.formats, device)
    stacks, inner = load(args, device)
    threads = torch.get_num_threads()
    rows: dict[str, dict[int, str]] = {}
    with torch.inference_mode():
        pieces = chain(
            stack_pieces(stacks["target"], "target"),
            draft_pieces(stacks["drafter"]),
            verify_pieces(stacks["target"]),
            product_pieces(stacks["target"], inner, formats),
        )
        for name, k, call in (bar := tqdm(pieces, unit=" pieces", file=sys.stderr)):
            bar.set_description(f"{name}, k={k}", refresh=False)
            found = Timer("call()", globals={"call": call}, num_threads=threads).blocked_autorange(
                min_run_time=args.seconds
            )
            rows.setdefault(name, {})[k] = f"{1000 * found.median:.3f} ±{1000 * found.iqr:.3f}"
    widths = sorted({k for row in rows.values() for k in row})
    body = [(name, *(row.get(k, "–") for k in widths)) for name, row in rows.items()]
    make_console().print(make_table(("ms (median ±IQR)", *(f"k={k}" for k in widths)), body))
    print(f"{args.model} on {device}, {threads} threads, {CONTEXT} tokens of context")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
