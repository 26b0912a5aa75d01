"""WeightReader: the weights of a supported model, laid out for a `DecoderStack` and put into a weight format.

Three changes, all exact: q, k and v become one product, gate and up become one; the rows of q and k are reordered so
that the two numbers that a rotary embedding rotates are adjacent, which makes it one complex product; and for formats
with 8-bit activations the residual stream and the inner states are rotated (models/rotation.py), unless that has been
done before (prepared_weights.py).

Shapes: H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pdevis.loading.weights.families import (
    EMBEDDING,
    FAMILIES,
    FINAL_NORM,
    HEAD,
    head_size,
    layer_name,
    rotary_frequencies,
    unsupported_reason,
    weight_shapes,
)
from pdevis.loading.weights.prepared_weights import PreparedWeights
from pdevis.loading.weights.safetensors_files import ModuleTensors, OpenedModel, TensorSource
from pdevis.models.layers import MLP, WHOLE, Attention, Layer, RMSNorm, ShardSpec, StackWeights, UnitRMSNorm
from pdevis.models.linear import (
    DRAFTER_FORMATS,
    FORMATS,
    ROTATED_PRECISIONS,
    DenseLinear,
    Linear,
    fbgemm_engine,
    storage_dtype,
)
from pdevis.models.rope_config import native_context
from pdevis.models.rotation import BlockHadamard, RotatedInputLinear, Rotation
from pdevis.util.validation import ModelLoadError

MAX_EXACT_PARTS = 4  # devices that split an MLP with the bits of one; more than that round differently on small models
VECTOR_SIZE = 32  # numbers that a CPU kernel processes at a time; a smaller remainder takes another path and rounds


def read_weights(
    model: Any,
    precision: str,
    device: torch.device,
    *,
    consume: bool = False,
    rotate: bool | None = None,
    head_rows: int | None = None,
    shard: ShardSpec = WHOLE,
    drafter: bool = False,
    prepared: PreparedWeights | None = None,
) -> StackWeights:
    """Read the weights of a stack from a model of a supported family.

    Args:
        model: an `OpenedModel`, or a transformers `…ForCausalLM`.
        precision: a resolved weight format (`resolve_precision`).
        device: for the weights.
        consume: free each layer of a transformers model after reading it, so that memory never holds two copies of it.
        rotate: rotate the residual stream (models/rotation.py); None: if the format needs it.
        head_rows: number of ids, from 0 on, that the output head covers; None: all. A drafter may use fewer.
        shard: the part of layers and head to read.
        drafter: use the formats that are fastest for one token (models/linear.py).
        prepared: the same model's matrices as this function has read them before; for int8 on CPU, with its rotation.

    Raises:
        ValueError: if a stack does not compute this architecture exactly, or the MLPs have too few rows for the shards.
        ModelLoadError: if the model has weights that a stack would leave out.
    """
    reader = WeightReader(
        model,
        precision,
        device,
        rotate=rotate,
        head_rows=head_rows,
        shard=shard,
        drafter=drafter,
        prepared=prepared,
    )
    return reader.read(consume=consume)


class WeightReader:
    """Reads one model. Arguments and errors as for `read_weights`."""

    def __init__(
        self,
        model: Any,
        precision: str,
        device: torch.device,
        *,
        rotate: bool | None = None,
        head_rows: int | None = None,
        shard: ShardSpec = WHOLE,
        drafter: bool = False,
        prepared: PreparedWeights | None = None,
    ) -> None:
        config = model.config
        if reason := unsupported_reason(config):
            raise ValueError(f"{config.name_or_path or config.model_type}: DecoderStack does not support {reason}")
        self.config, self.family = config, FAMILIES[config.model_type]
        self.source: TensorSource = model.weights if isinstance(model, OpenedModel) else ModuleTensors(model)
        self.names = weight_shapes(config).keys()
        self._check_all_are_used()
        self.precision, self.device, self.dtype = precision, device, storage_dtype(precision)
        self.shard, self.drafter, self.prepared = shard, drafter, prepared
        self.head_rows = min(head_rows or config.vocab_size, config.vocab_size)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = head_size(config)
        self.make_linear = (DRAFTER_FORMATS if drafter else FORMATS)[precision]
        self.rotation: Rotation | None = None
        self.attention_hadamard: BlockHadamard | None = None
        self.mlp_hadamard: BlockHadamard | None = None
        if precision in ROTATED_PRECISIONS if rotate is None else rotate:
            self.rotation = Rotation(config.hidden_size)
            self.attention_hadamard = BlockHadamard(self.heads * self.head_dim, self.dtype)
            self.mlp_hadamard = BlockHadamard(config.intermediate_size, self.dtype, MAX_EXACT_PARTS)
        self.mlp_block = self._mlp_block()

    def read(self, *, consume: bool = False) -> StackWeights:
        """Read all parts of the model that the shard holds."""
        config = self.config
        # The largest matrices first: the temporary copies then exist while little else is in memory.
        embedding = self.embedding()
        final_norm_weight = self._read(f"{FINAL_NORM}.weight")
        head = self.head(final_norm_weight)
        frequencies, rope_scale = rotary_frequencies(config)
        return StackWeights(
            family=config.model_type,
            precision=self.precision,
            device=self.device,
            dtype=self.dtype,
            layers=self.layers(consume=consume),
            embedding=embedding,
            final_norm=self.norm(final_norm_weight),
            head=head,
            head_start=self.shard.rows(self.head_rows).start,
            frequencies=frequencies.to(self.device, torch.float32),
            rope_scale=float(rope_scale),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_size=config.intermediate_size,
            mlp_block=self.mlp_block,
            vocab_size=config.vocab_size,
            context_length=native_context(config),
        )

    # ---- parts of the model ----

    def embedding(self) -> Tensor:
        """Read the token embedding [V, H]."""
        if self.prepared:
            return self.prepared.embedding()
        embedding = self._read(f"{EMBEDDING}.weight")
        return self.rotation.rotate_rows(embedding) if self.rotation else embedding

    def head(self, norm_weight: Tensor) -> Linear:
        """Read this shard's rows of the output head, [T, H] -> [T, V], which follows a norm of this weight."""
        rows = self.shard.rows(self.head_rows)
        # bitsandbytes does not quantise the output head, and neither does transformers.
        make_linear = DenseLinear if self.precision == "nf4" else self.make_linear
        return self.norm_fused_linear(
            "head", norm_weight, [HEAD], select=lambda fused: fused[rows.start : rows.stop], make_linear=make_linear
        )

    def layers(self, *, consume: bool) -> list[Layer]:
        """Read all decoder layers."""
        read, numbers = partial(self.layer, consume=consume), range(self.config.num_hidden_layers)
        if not self.prepared:  # torch uses all cores for each matrix
            return list(map(read, numbers))
        with fbgemm_engine(), ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing uses one core for each
            return list(pool.map(read, numbers))

    def layer(self, number: int, *, consume: bool) -> Layer:
        """Read the sublayers of one decoder layer that the shard holds."""
        has_attention = self.shard.holds(number)
        has_mlp = has_attention or self.shard.split_mlps
        layer = Layer(self.attention(number) if has_attention else None, self.mlp(number) if has_mlp else None)
        if consume:
            self.source.release(layer_name(number))
        return layer

    def attention(self, number: int) -> Attention:
        """Read an attention sublayer."""
        prefix, names, hadamard = f"{layer_name(number)}.self_attn", self.family, self.attention_hadamard
        norm_weight = self._read(f"{layer_name(number)}.{names.attention_norm}.weight")
        projections = [f"{prefix}.{name}" for name in names.qkv]
        qkv = self.norm_fused_linear(f"{number}.qkv", norm_weight, projections, reorder=self.pair_rotary_rows)
        output = self.output_linear(f"{number}.output", f"{prefix}.{names.attention_output}", hadamard)
        return Attention(
            norm=self.norm(norm_weight),
            qkv=qkv,
            qk_norm=self.qk_norm(prefix),
            output=RotatedInputLinear(hadamard, output) if hadamard else output,
            layers=range(number, number + 1),
        )

    def mlp(self, number: int) -> MLP:
        """Read an MLP sublayer, or this shard's rows of its matrices."""
        prefix, names = f"{layer_name(number)}.mlp", self.family
        norm_weight = self._read(f"{layer_name(number)}.{names.mlp_norm}.weight")
        inner_rows = self.shard.mlp_rows(self.config.intermediate_size, self.mlp_block)
        output_rows = self.shard.mlp_rows(self.config.hidden_size)

        def shard_rows(fused: Tensor) -> Tensor:  # [2I, …]: the same rows of the gate's and of the up projection
            return fused.unflatten(0, (2, -1))[:, inner_rows.start : inner_rows.stop].flatten(0, 1)

        projections = [f"{prefix}.{name}" for name in names.gate_up]
        gate_up = self.norm_fused_linear(f"{number}.gate_up", norm_weight, projections, select=shard_rows)
        down = self.output_linear(f"{number}.down", f"{prefix}.{names.down}", self.mlp_hadamard, output_rows)
        return MLP(self.norm(norm_weight), gate_up, self.mlp_hadamard, down)

    # ---- pieces of a part ----

    def norm(self, weight: Tensor) -> RMSNorm | UnitRMSNorm:
        """Return the norm of a sublayer's input; under a rotation its weight is folded into the next matrix."""
        eps = self.config.rms_norm_eps
        if self.rotation:
            return UnitRMSNorm(self.config.hidden_size, eps, self.dtype)
        return RMSNorm(weight, eps)

    def qk_norm(self, prefix: str) -> RMSNorm | None:
        """Return the norm over each head of q and k, weight [1, N + K, D], if the family has one."""
        if self.family.qk_norm is None:
            return None
        q, k = (
            self._read(f"{prefix}.{name}.weight").unflatten(0, (2, -1)).t().flatten()  # rotary pairs
            for name in self.family.qk_norm
        )
        weight = torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])[None]
        return RMSNorm(weight, self.config.rms_norm_eps)

    def norm_fused_linear(
        self,
        part: str,
        norm_weight: Tensor,
        modules: Sequence[str],
        *,
        reorder: Callable[[Tensor], Tensor] = lambda fused: fused,
        select: Callable[[Tensor], Tensor] = lambda fused: fused,
        make_linear: Callable[[Tensor, Tensor | None], Linear] | None = None,
    ) -> Linear:
        """Return a product on the normed residual stream; under a rotation it absorbs the norm's weight.

        Args:
            part: its name among prepared weights.
            norm_weight: [H], of the norm before the product.
            modules: the projections to fuse.
            reorder: reorders all rows of the fused weight and bias; prepared weights are in this order.
            select: chooses rows of the fused weight and bias. It runs early: other rows cost no work.
            make_linear: the weight format; None: the reader's.
        """
        if self.prepared:
            return self.prepared.linear(part, select, drafter=self.drafter)
        weight, bias = (None if tensor is None else select(reorder(tensor)) for tensor in self._fused(modules))
        if self.rotation:
            folded_norm = norm_weight * self.config.hidden_size**0.5
            weight = self.rotation.rotate_rows(weight * folded_norm)
        return (make_linear or self.make_linear)(weight, bias)

    def output_linear(
        self, part: str, module: str, hadamard: BlockHadamard | None, rows: range | None = None
    ) -> Linear:
        """Return a product whose result is added to the residual stream.

        Args:
            part: its name among prepared weights.
            module: the projection.
            hadamard: the rotation of the product's input; None: its input is not rotated.
            rows: the part of the result that this device computes; None: all.
        """
        chosen = slice(None) if rows is None else slice(rows.start, rows.stop)
        if self.prepared:
            return self.prepared.linear(part, lambda fused: fused[chosen], drafter=self.drafter)
        weight, bias = self._fused([module])
        if self.rotation:
            weight = self.rotation.rotate_columns(weight)
            bias = None if bias is None else self.rotation.rotate_rows(bias)
        weight, bias = weight[chosen], None if bias is None else bias[chosen]
        return self.make_linear(weight if hadamard is None else hadamard(weight), bias)

    def pair_rotary_rows(self, rows: Tensor) -> Tensor:
        """Reorder the rows [(N + 2K) D, …] of each head of q and k from (half, half) to (pair, pair, …)."""
        qk_heads = self.heads + self.kv_heads
        end = qk_heads * self.head_dim
        qk = rows[:end].unflatten(0, (qk_heads, 2, self.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        return torch.cat([qk, rows[end:]])

    # ---- helpers ----

    def _check_all_are_used(self) -> None:
        """Raise ModelLoadError if the decoder's modules have weights or biases that no part of the stack reads.

        Modules outside the decoder and tensors of other kinds, such as stored frequencies, do not change its text.
        """
        layers = map(layer_name, range(self.config.num_hidden_layers))
        modules = tuple(f"{module}." for module in (EMBEDDING, FINAL_NORM, HEAD, *layers))
        names = set(self.source.names()) - self.names
        unused = sorted(name for name in names if name.startswith(modules) and name.endswith((".weight", ".bias")))
        if unused:
            raise ModelLoadError(
                f"model = {self.config.name_or_path or self.config.model_type!r}: has weights that pdevis's "
                f"forward pass does not use, {unused[0]} first of {len(unused)}; check the settings of its config.json"
            )

    def _mlp_block(self) -> int:
        """Return how many MLP rows must stay together on one device. Raises ValueError for too many shards."""
        size = self.config.intermediate_size
        aligned = min(size & -size, VECTOR_SIZE)
        block = max(aligned, self.mlp_hadamard.block if self.mlp_hadamard else 1)  # both are powers of two
        if self.shard.split_mlps and self.shard.size > size // block:
            raise ValueError(
                f"draft_device names {self.shard.size} cores: at most {size // block} can share this model's MLPs"
            )
        return block

    def _read(self, name: str) -> Tensor:
        return self.source.tensor(name).to(self.device, self.dtype)

    def _fused(self, modules: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Concatenate weights and biases of linear modules; a single module's tensors are not copied."""
        biases = [self._read(f"{module}.bias") for module in modules if f"{module}.bias" in self.names]
        assert len(biases) in (0, len(modules)), "fused projections must all have a bias, or none of them"
        weights = [self._read(f"{module}.weight") for module in modules]
        if len(modules) == 1:
            return weights[0], biases[0] if biases else None
        return torch.cat(weights), torch.cat(biases) if biases else None
