"""Weight formats: the linear layers of a `DecoderStack` on each device.

A format turns a weight [N, K] and an optional bias [N] into a callable x [T, K] -> y [T, N]. The CPU formats of a
target give a row the same bits alone and in a batch if their kernels allow it (int8 always does), so that verifying k
tokens at once computes the same numbers as plain decoding.

Compare each format with float32, in closeness and speed:

    python evaluation/formats/evaluate_formats.py

Shapes: T = rows of the input (tokens), K = input size, N = output size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pdevis.util.validation import check_one_of

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
STACK_FORMATS = ("packed", "int8")  # of a DecoderStack only; activations are float32
PRECISIONS = ("auto", *DTYPES, *STACK_FORMATS, "nf4")

# oneDNN chooses its blocking by this row count: packed for 8 rows, a verification of 2 to 8 tokens costs about as much
# as one token; packed for 1 row it costs 1.5 times as much.
PACKED_ROWS = 8
# With AVX-512 a product of 6 rows takes two thirds of the time of a product of one, which runs through another kernel
# and rounds differently. So smaller inputs are padded: faster, and a row has the same bits alone and in a batch.
MIN_PACKED_ROWS = 6
MAX_UNPADDED_BYTES = 3 << 20  # smaller weights stay in the processor's cache and round alike without padding


class Linear(Protocol):
    """A linear layer. Those that use another library's kernels also have `out_features`."""

    bias: Tensor | None

    def dense_weight(self) -> Tensor:
        """Return the weight [N, K] as a plain tensor: the stored one, or a copy."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """The weight as loaded, in its own dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def dense_weight(self) -> Tensor:
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """float32 or bfloat16 weights in oneDNN's blocked layout: several rows cost little more than one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight if weight.dtype == torch.bfloat16 else weight.float()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
        self.bias = bias
        self.out_features = len(weight)
        self.product = torch.ops.mkldnn._linear_pointwise.default
        large = weight.nbytes > MAX_UNPADDED_BYTES
        self.min_rows = MIN_PACKED_ROWS if large and torch.backends.cpu.get_cpu_capability() == "AVX512" else 1

    def dense_weight(self) -> Tensor:
        return self.packed.to_dense()

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        if rows >= self.min_rows:
            return self.product(x, self.packed, self.bias, "none", [], "")
        padded = F.pad(x, (0, 0, 0, self.min_rows - rows))
        return self.product(padded, self.packed, self.bias, "none", [], "")[:rows]


def bfloat16_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a bfloat16 layer: packed if the CPU has bfloat16 units, else as loaded."""
    return (PackedLinear if weight.device.type == "cpu" and has_bfloat16_units() else DenseLinear)(weight, bias)


def quantize_rows(weight: Tensor) -> Tensor:
    """Return a weight [N, K] as a quantised tensor: 8-bit integers with one scale per row."""
    weight = weight.float()
    # the largest magnitude of each row, without a copy of the matrix
    scales = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).clamp_min(1e-12) / 127
    _hide_quantization_warning()
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)


def quantized_from_integers(integers: Tensor, scales: Tensor) -> Tensor:
    """Return the quantised tensor of 8-bit integers [N, K] with scales [N], float64."""
    _hide_quantization_warning()
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return torch._make_per_channel_quantized_tensor(integers.contiguous(), scales, zeros, 0)


@cache
def _hide_quantization_warning() -> None:
    """Let torch give its warning of quantised dtypes, which comes once per process, while warnings are ignored.

    torch plans to retire these dtypes; fbgemm's packing takes no other input. Ignoring warnings at each use instead is
    not possible in several threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.qint8)


@contextmanager
def fbgemm_engine() -> Iterator[None]:
    """Make fbgemm the engine of quantised products. For several threads, this must be entered before they start."""
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "fbgemm"
        yield
    finally:
        torch.backends.quantized.engine = engine


class Int8Linear:
    """8-bit weights (one scale per output row), 8-bit activations (one scale per token), integer accumulation.

    A token's scale depends on that token alone and the products are summed as integers, so k tokens give the same bits
    at once and one by one. Without VNNI units fbgemm's 16-bit sums can saturate: activations then use 7 bits.

    Args:
        weight: [N, K]; a quantised tensor (`quantize_rows`) is used as it is.
        bias: [N], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        quantised = weight if weight.is_quantized else quantize_rows(weight)
        with fbgemm_engine():
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias = bias
        self.out_features = len(weight)
        vnni = torch.cpu._is_vnni_supported()
        self.activation_step, self.zero_point = (1 / 127, 128) if vnni else (1 / 63, 64)
        self.product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    @property
    def quantised(self) -> Tensor:
        """The weight as a quantised tensor, a copy."""
        return torch.ops.quantized.linear_unpack(self.packed)[0]

    def dense_weight(self) -> Tensor:
        return self.quantised.dequantize()

    def __call__(self, x: Tensor) -> Tensor:
        # [T, 1]; the scale of a row of zeros is 0, and so is the row's result. vector_norm takes four times as long.
        scale = x.abs().amax(-1, keepdim=True)
        y = self.product(x / scale, self.activation_step, self.zero_point, self.packed).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


class DrafterInt8Linear(Int8Linear):
    """`Int8Linear` with a faster product for one token, whose kernel finds the token's range itself.

    One kernel instead of five, a measurable gain in a small drafter. Its range need not be symmetric, so a row alone
    does not have the bits that it has in a batch: verification by a target requires those, drafting does not.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.single_row_product = torch.ops.quantized.linear_dynamic.default
        self.reduce_range = self.zero_point == 64

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().__call__(x)
        y = self.single_row_product(x, self.packed, self.reduce_range)
        return y if self.bias is None else y.add_(self.bias)


class Nf4Linear:
    """4-bit NF4 weights through bitsandbytes, computing in the dtype of the activations (CUDA)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        from bitsandbytes.functional import quantize_4bit

        self.weight, self.state = quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
        self.bias = bias
        self.out_features = len(weight)

    def dense_weight(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight, self.state)

    def __call__(self, x: Tensor) -> Tensor:
        from bitsandbytes import matmul_4bit

        return matmul_4bit(x, self.weight.t(), quant_state=self.state, bias=self.bias)


FORMATS: dict[str, Callable[[Tensor, Tensor | None], Linear]] = {
    **dict.fromkeys(DTYPES, DenseLinear),
    "bfloat16": bfloat16_linear,
    "packed": PackedLinear,
    "int8": Int8Linear,
    "nf4": Nf4Linear,
}
DRAFTER_FORMATS = {**FORMATS, "int8": DrafterInt8Linear}
ROTATED_PRECISIONS = ("int8",)  # formats that need the residual stream rotated (rotation.py)


def has_packed() -> bool:
    """Return True if this CPU build of torch has the oneDNN kernels of `packed`."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_bfloat16_units() -> bool:
    """Return True if this CPU has bfloat16 units (AVX512-BF16 or AMX) that torch's oneDNN uses."""
    return has_packed() and torch.cpu._is_avx512_bf16_supported()


def has_int8() -> bool:
    """Return True if this CPU build of torch has the fbgemm kernels of `int8` (x86-64)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _has_bitsandbytes() -> bool:
    from importlib.util import find_spec

    return find_spec("bitsandbytes") is not None


def resolve_precision(precision: str, device: torch.device, role: str) -> str:
    """Return the format to use on `device`: `precision`, or the best one there if it is "auto".

    Args:
        precision: one of `PRECISIONS`.
        device: of the weights.
        role: "target" or "drafter"; decides what "auto" means.

    Raises:
        ValueError: if the format is unknown, or this device or installation does not support it.
    """
    name = f"{role}_precision".replace("drafter", "draft")
    check_one_of(name, precision, PRECISIONS)
    cpu = device.type == "cpu"
    if precision == "auto":
        if cpu:
            return "int8" if role == "drafter" and has_int8() else "packed" if has_packed() else "float32"
        return "bfloat16"
    if precision in ("packed", "int8") and not cpu:
        raise ValueError(f"{name} = {precision!r}: runs on CPU only, not on {device}")
    if precision == "packed" and not has_packed():
        raise ValueError(f"{name} = 'packed': this torch has no oneDNN; use float32")
    if precision == "int8" and not has_int8():
        raise ValueError(f"{name} = 'int8': this torch has no fbgemm kernels; use float32")
    if precision == "nf4" and device.type != "cuda":
        raise ValueError(f"{name} = 'nf4': runs on CUDA only, not on {device}")
    if precision == "nf4" and not _has_bitsandbytes():
        raise ValueError(f"{name} = 'nf4': needs bitsandbytes (pip install bitsandbytes)")
    return precision


def storage_dtype(precision: str) -> torch.dtype:
    """Return the dtype of activations, embeddings and KV cache under a resolved format."""
    if precision in STACK_FORMATS:
        return torch.float32
    return torch.bfloat16 if precision == "nf4" else DTYPES[precision]
