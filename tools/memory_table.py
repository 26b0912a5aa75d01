"""Print the memory that the models of the catalog need, computed from their published sizes: Markdown tables.

    python tools/memory_table.py                          # the tables of docs/quickstart-gpu.md
    python tools/memory_table.py --tokens 32768           # with KV caches of another length
    python tools/memory_table.py --pairs qwen-8b:qwen-1.7b,llama-70b:llama-8b

Weights are parameters x bytes. For each token, a KV cache takes 2 x layers with attention x key/value heads x head size
x bytes; its storage grows by doubling, so up to twice that is reserved. Activations are not included (some hundred
MiB). Nothing is loaded or downloaded.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdevis.cli import Parser, run_main
from pdevis.loading.catalog import PUBLISHED_CONFIGS
from pdevis.util.argtypes import comma_list, positive_int

GIB, MIB = 2**30, 2**20
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64 weights, a float32 for 256 scales
GPU_SIZES = (16, 24, 48, 80)  # GiB
SPARE = 0.1  # of a GPU, for activations and the libraries


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of a dense model from its config.json; its attention and MLP have no biases."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    tied: bool = False  # the output head is the embedding
    qk_norm: bool = False

    @property
    def vocab_matrix(self) -> int:
        """Parameters of the embedding, and of the output head."""
        return self.vocab * self.hidden

    @property
    def attention(self) -> int:
        """Parameters of one attention sublayer's matrices."""
        return 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)

    @property
    def linear(self) -> int:
        """Parameters in linear layers, without the output head."""
        return self.layers * (self.attention + 3 * self.hidden * self.mlp)

    @property
    def others(self) -> int:
        """Parameters outside of linear layers, embedding and output head."""
        per_layer = 2 * self.hidden + (2 * self.head_size if self.qk_norm else 0)
        return self.layers * per_layer + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear + self.others + self.vocab_matrix * (1 if self.tied else 2)

    @property
    def attention_layers(self) -> int:
        """Layers whose keys and values are cached."""
        return self.layers

    def weight_bytes(self, precision: str) -> float | None:
        """Bytes of the weights in pdevis's own forward pass, where a tied head is stored apart from the embedding."""
        matrix, vector = {"bfloat16": (2, 2), "nf4": (NF4_BYTES, 2), "packed": (4, 4), "int8": (1, 4)}[precision]
        head = vector if precision == "nf4" else matrix
        return self.linear * matrix + self.others * vector + self.vocab_matrix * (vector + head)

    def kv_bytes(self, tokens: int, entry_bytes: int = 2) -> int:
        """Bytes of the cached keys and values of a text of this many tokens."""
        return 2 * self.attention_layers * self.kv_heads * self.head_size * entry_bytes * tokens


@dataclass(frozen=True, kw_only=True)
class MoESize(ModelSize):
    """Sizes of a mixture-of-experts model; `mlp` is the size of one expert. It runs through transformers."""

    experts: int

    @property
    def linear(self) -> int:
        return self.layers * self.attention

    @property
    def others(self) -> int:
        """Experts and routers included: transformers stores them as tensors that nf4 does not change."""
        experts = self.experts * 3 * self.hidden * self.mlp
        return super().others + self.layers * (experts + self.experts * self.hidden)

    def weight_bytes(self, precision: str) -> float | None:
        """None for the formats that need pdevis's own forward pass."""
        if precision not in ("bfloat16", "nf4"):
            return None
        return self.linear * (NF4_BYTES if precision == "nf4" else 2) + 2 * (self.parameters - self.linear)


@dataclass(frozen=True, kw_only=True)
class HybridMoESize(MoESize):
    """Sizes of Qwen3-Next: one layer of four has attention, with an output gate; the others are gated delta nets."""

    interval: int = 4
    key_heads: int = 16
    value_heads: int = 32
    delta_head_size: int = 128
    kernel: int = 4

    @property
    def attention_layers(self) -> int:
        return self.layers // self.interval

    @property
    def linear(self) -> int:
        gated = self.attention + self.hidden * self.head_size * self.heads
        keys, values = self.key_heads * self.delta_head_size, self.value_heads * self.delta_head_size
        delta = self.hidden * (2 * keys + 2 * values + 2 * self.value_heads) + values * self.hidden
        shared_expert = 3 * self.hidden * self.mlp + self.hidden
        delta_layers = self.layers - self.attention_layers
        return self.attention_layers * gated + delta_layers * delta + self.layers * shared_expert

    @property
    def others(self) -> int:
        keys, values = self.key_heads * self.delta_head_size, self.value_heads * self.delta_head_size
        delta = self.kernel * (2 * keys + values) + 2 * self.value_heads + self.delta_head_size
        delta_layers = self.layers - self.attention_layers
        return super().others + delta_layers * (delta - 2 * self.head_size)


def size_of(config: Mapping[str, Any]) -> ModelSize:
    """Return the sizes in the values of a config.json."""
    kind = {"qwen3_moe": MoESize, "qwen3_next": HybridMoESize}.get(config["model_type"], ModelSize)
    experts = {"experts": config["num_experts"]} if "num_experts" in config else {}
    return kind(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_size=config["head_dim"],
        mlp=config["moe_intermediate_size" if experts else "intermediate_size"],
        vocab=config["vocab_size"],
        tied=config["tie_word_embeddings"],
        qk_norm=config["model_type"].startswith("qwen3"),
        **experts,
    )


MODELS = {key: size_of(config) for key, config in PUBLISHED_CONFIGS.items()}
PAIRS = (
    ("llama-3b", "llama-1b"),
    ("llama-8b", "llama-1b"),
    ("llama-70b", "llama-1b"),
    ("llama-70b", "llama-3b"),
    ("llama-70b", "llama-8b"),
    ("qwen-4b", "qwen-0.6b"),
    ("qwen-8b", "qwen-0.6b"),
    ("qwen-8b", "qwen-1.7b"),
    ("qwen-32b", "qwen-0.6b"),
    ("qwen-32b", "qwen-1.7b"),
    ("qwen-30b-I", "qwen-4b-I"),
    ("qwen-80b-I", "qwen-4b-I"),
)
PRECISIONS = ("bfloat16", "nf4", "packed", "int8")


def pair_bytes(target: str, drafter: str, precision: str, tokens: int) -> float:
    """Bytes of both models and their KV caches, the drafter's weights in bfloat16."""
    weights = MODELS[target].weight_bytes(precision) + MODELS[drafter].weight_bytes("bfloat16")
    return weights + MODELS[target].kv_bytes(tokens) + MODELS[drafter].kv_bytes(tokens)


def gpus_for(size: float) -> str:
    """The smallest GPU that holds this many bytes, or how many of the largest do."""
    needed = size / GIB / (1 - SPARE)
    for gib in GPU_SIZES:
        if needed <= gib:
            return f"1 of {gib} GiB"
    return f"{math.ceil(needed / GPU_SIZES[-1])} of {GPU_SIZES[-1]} GiB"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines)


def model_table(tokens: int) -> str:
    """Weights in each format, and the KV cache, of every model."""
    rows = []
    for name, size in MODELS.items():
        weights = [size.weight_bytes(precision) for precision in PRECISIONS]
        cells = ["–" if weight is None else f"{weight / GIB:.1f}" for weight in weights]
        rows.append([name, f"{size.parameters:,}", *cells, f"{size.kv_bytes(tokens) / MIB:.0f}"])
    units = [f"{precision}, GiB" for precision in PRECISIONS]
    return table(["model", "parameters", *units, f"KV cache, {tokens} tokens, MiB"], rows)


def pair_table(pairs: Sequence[tuple[str, str]], tokens: int) -> str:
    """Both models with their KV caches, for a target in bfloat16 and in nf4."""
    rows = []
    for target, drafter in pairs:
        sizes = [pair_bytes(target, drafter, precision, tokens) for precision in ("bfloat16", "nf4")]
        drafter_bytes = MODELS[drafter].weight_bytes("bfloat16") + MODELS[drafter].kv_bytes(tokens)
        cells = [cell for size in sizes for cell in (f"{size / GIB:.1f}", gpus_for(size))]
        rows.append([target, drafter, f"{drafter_bytes / GIB:.1f}", *cells])
    columns = ["target", "drafter", "drafter alone, GiB", "both, GiB", "fits on"]
    return table([*columns, "both, target nf4, GiB", "fits on"], rows)


def pair(text: str) -> tuple[str, str]:
    """Parse TARGET:DRAFTER."""
    names = tuple(text.split(":"))
    if len(names) != 2 or not set(names) <= set(MODELS):
        raise argparse.ArgumentTypeError(f"{text!r} must be TARGET:DRAFTER, two of {', '.join(MODELS)}")
    return names


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    text = "length of the text in the KV caches, prompt included (default: %(default)s)"
    parser.add_argument("--tokens", type=positive_int, default=4096, metavar="N", help=text)
    text = "TARGET:DRAFTER, a comma list (default: pairs of the catalog)"
    parser.add_argument("--pairs", type=comma_list(pair), default=PAIRS, metavar="LIST", help=text)
    return parser


def run(args: argparse.Namespace) -> None:
    print(model_table(args.tokens), pair_table(args.pairs, args.tokens), sep="\n\n")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
