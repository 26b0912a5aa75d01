"""WeightReader: the weights of a transformers model, laid out for a `DecoderStack` and put into a weight format.

Three changes, all exact: q, k and v become one product, gate and up become one; the rows of q and k are reordered so
that the two numbers that a rotary embedding rotates are adjacent, which makes it one complex product; and for formats
with 8-bit activations the residual stream and the inner states are rotated (models/rotation.py).

To support another family, add it to `FAMILIES` with the names of its modules, and to the families of the tests.

Shapes: H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdevis.loading.safetensors_stream import StreamedModel
from pdevis.models.layers import MLP, WHOLE, Attention, Layer, RMSNorm, ShardSpec, StackWeights, UnitRMSNorm
from pdevis.models.linear import DRAFTER_FORMATS, FORMATS, ROTATED_PRECISIONS, DenseLinear, Linear, storage_dtype
from pdevis.models.rotation import BlockHadamard, RotatedInputLinear, Rotation

MAX_EXACT_PARTS = 4  # devices that split an MLP with the bits of one; more than that round differently on small models
VECTOR_SIZE = 32  # numbers that a CPU kernel processes at a time; a smaller remainder takes another path and rounds
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the length


@dataclass(frozen=True)
class FamilySpec:
    """Names of a family's modules in transformers; several names: projections that are fused into one product."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    qk_norm: tuple[str, str] | None = None
    attention_output: str = "o_proj"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"


FAMILIES = {
    "llama": FamilySpec(),
    "qwen2": FamilySpec(),
    "qwen3": FamilySpec(qk_norm=("q_norm", "k_norm")),
}


def unsupported_reason(config: Any) -> str | None:
    """Return why a model with this transformers config cannot run as a `DecoderStack`; None if it can."""
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} (supported: {', '.join(FAMILIES)})"
    if getattr(config, "quantization_config", None):
        return "weights that are already quantised"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"rope type {rope['rope_type']!r} (supported: {', '.join(ROPE_TYPES)})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "partial rotary embedding"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} (supported: silu)"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "sliding-window attention"
    return None


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
) -> StackWeights:
    """Read the weights of a stack from a transformers model of a supported family.

    Args:
        model: a transformers `…ForCausalLM` in eval mode, or a `StreamedModel`.
        precision: a resolved weight format (`resolve_precision`).
        device: for the weights.
        consume: free each layer of `model` after reading it, so that memory never holds two copies of the model.
        rotate: rotate the residual stream (models/rotation.py); None: if the format needs it.
        head_rows: number of ids, from 0 on, that the output head covers; None: all. A drafter may use fewer.
        shard: the part of layers and head to read.
        drafter: use the formats that are fastest for one token (models/linear.py).

    Raises:
        ValueError: if a stack does not compute this architecture exactly, or the MLPs have too few rows for the shards.
    """
    reader = WeightReader(model, precision, device, rotate=rotate, head_rows=head_rows, shard=shard, drafter=drafter)
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
    ) -> None:
        config = model.config
        if reason := unsupported_reason(config):
            raise ValueError(f"{config.name_or_path or config.model_type}: DecoderStack does not support {reason}")
        self.model, self.config, self.family = model, config, FAMILIES[config.model_type]
        self.precision, self.device, self.dtype = precision, device, storage_dtype(precision)
        self.shard = shard
        self.head_rows = min(head_rows or config.vocab_size, config.vocab_size)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
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
        config, rotary = self.config, self.model.model.rotary_emb
        # The largest matrices first: the temporary copies then exist while little else is in memory.
        embedding = self.embedding()
        final_norm_weight = self._to_device(self._filled(self.model.model.norm, "model.norm").weight)
        head = self.head(final_norm_weight)
        return StackWeights(
            family=config.model_type,
            precision=self.precision,
            device=self.device,
            dtype=self.dtype,
            layers=[self.layer(number, consume=consume) for number in range(len(self.model.model.layers))],
            embedding=embedding,
            final_norm=self.norm(final_norm_weight),
            head=head,
            head_start=self.shard.rows(self.head_rows).start,
            frequencies=rotary.inv_freq.detach().to(self.device, torch.float32),
            rope_scale=float(rotary.attention_scaling),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_size=config.intermediate_size,
            mlp_block=self.mlp_block,
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
        )

    # ---- parts of the model ----

    def embedding(self) -> Tensor:
        """Read the token embedding [V, H]."""
        module = self._filled(self.model.model.embed_tokens, "model.embed_tokens")
        embedding = self._to_device(module.weight)
        if self.rotation:
            embedding = self.rotation.rotate_rows(embedding)
        self._release(module)
        return embedding

    def head(self, norm_weight: Tensor) -> Linear:
        """Read this shard's rows of the output head, [T, H] -> [T, V], which follows a norm of this weight."""
        module = self._filled(self.model.lm_head, "lm_head")
        rows = self.shard.rows(self.head_rows)
        # bitsandbytes does not quantise the output head, and neither does transformers.
        make_linear = DenseLinear if self.precision == "nf4" else self.make_linear
        head = self.norm_fused_linear(
            norm_weight, [module], select=lambda fused: fused[rows.start : rows.stop], make_linear=make_linear
        )
        self._release(module)
        return head

    def layer(self, number: int, *, consume: bool) -> Layer:
        """Read the sublayers of one decoder layer that the shard holds."""
        module, has_attention = self.model.model.layers[number], self.shard.holds(number)
        has_mlp = has_attention or self.shard.split_mlps
        if has_mlp:
            self._filled(module, f"model.layers.{number}")
        layer = Layer(self.attention(module) if has_attention else None, self.mlp(module) if has_mlp else None)
        if consume:
            module.to("meta")
        else:
            self._release(module)
        return layer

    def attention(self, layer: Any) -> Attention:
        """Read an attention sublayer."""
        module, names, hadamard = layer.self_attn, self.family, self.attention_hadamard
        norm_weight = getattr(layer, names.attention_norm).weight
        projections = [getattr(module, name) for name in names.qkv]
        qkv = self.norm_fused_linear(norm_weight, projections, select=self.pair_rotary_rows)
        output = self.output_linear(getattr(module, names.attention_output), hadamard)
        return Attention(
            norm=self.norm(norm_weight),
            qkv=qkv,
            qk_norm=self.qk_norm(module),
            output=RotatedInputLinear(hadamard, output) if hadamard else output,
        )

    def mlp(self, layer: Any) -> MLP:
        """Read an MLP sublayer, or this shard's rows of its matrices."""
        module, names = layer.mlp, self.family
        norm_weight = getattr(layer, names.mlp_norm).weight
        inner_rows = self.shard.mlp_rows(self.config.intermediate_size, self.mlp_block)
        output_rows = self.shard.mlp_rows(self.config.hidden_size)

        def shard_rows(fused: Tensor) -> Tensor:  # [2I, …]: the same rows of the gate's and of the up projection
            return fused.unflatten(0, (2, -1))[:, inner_rows.start : inner_rows.stop].flatten(0, 1)

        projections = [getattr(module, name) for name in names.gate_up]
        gate_up = self.norm_fused_linear(norm_weight, projections, select=shard_rows)
        down = self.output_linear(getattr(module, names.down), self.mlp_hadamard, output_rows)
        return MLP(self.norm(norm_weight), gate_up, self.mlp_hadamard, down)

    # ---- pieces of a part ----

    def norm(self, weight: Tensor) -> RMSNorm | UnitRMSNorm:
        """Return the norm of a sublayer's input; under a rotation its weight is folded into the next matrix."""
        eps = self.config.rms_norm_eps
        if self.rotation:
            return UnitRMSNorm(self.config.hidden_size, eps, self.dtype)
        return RMSNorm(self._to_device(weight), eps)

    def qk_norm(self, attention: Any) -> RMSNorm | None:
        """Return the norm over each head of q and k, weight [N + K, D], if the family has one."""
        if self.family.qk_norm is None:
            return None
        q, k = (
            self._to_device(getattr(attention, name).weight).unflatten(0, (2, -1)).t().flatten()  # rotary pairs
            for name in self.family.qk_norm
        )
        weight = torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])
        return RMSNorm(weight, self.config.rms_norm_eps)

    def norm_fused_linear(
        self,
        norm_weight: Tensor,
        modules: Sequence[torch.nn.Linear],
        *,
        select: Callable[[Tensor], Tensor],
        make_linear: Callable[[Tensor, Tensor | None], Linear] | None = None,
    ) -> Linear:
        """Return one product on the normed residual stream; under a rotation it absorbs the norm's weight.

        Args:
            norm_weight: [H], of the norm before the product.
            modules: the projections to fuse.
            select: reorders or chooses rows of the fused weight and bias. It runs first: other rows cost no work.
            make_linear: the weight format; None: the reader's.
        """
        weight, bias = (None if tensor is None else select(tensor) for tensor in self._fused(modules))
        if self.rotation:
            folded_norm = self._to_device(norm_weight) * self.config.hidden_size**0.5
            weight = self.rotation.rotate_rows(weight * folded_norm)
        return (make_linear or self.make_linear)(weight, bias)

    def output_linear(self, module: Any, hadamard: BlockHadamard | None, rows: range | None = None) -> Linear:
        """Return a product whose result is added to the residual stream.

        Args:
            module: the torch.nn.Linear.
            hadamard: the rotation of the product's input; None: its input is not rotated.
            rows: the part of the result that this device computes; None: all.
        """
        weight, bias = self._fused([module])
        if self.rotation:
            weight = self.rotation.rotate_columns(weight)
            bias = None if bias is None else self.rotation.rotate_rows(bias)
        if rows is not None:
            weight = weight[rows.start : rows.stop]
            bias = None if bias is None else bias[rows.start : rows.stop]
        return self.make_linear(weight if hadamard is None else hadamard(weight), bias)

    def pair_rotary_rows(self, rows: Tensor) -> Tensor:
        """Reorder the rows [(N + 2K) D, …] of each head of q and k from (half, half) to (pair, pair, …)."""
        qk_heads = self.heads + self.kv_heads
        end = qk_heads * self.head_dim
        qk = rows[:end].unflatten(0, (qk_heads, 2, self.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        return torch.cat([qk, rows[end:]])

    # ---- helpers ----

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

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype)

    def _fused(self, modules: Sequence[torch.nn.Linear]) -> tuple[Tensor, Tensor | None]:
        """Concatenate weights and biases of linear modules; a single module's tensors are not copied."""
        biases = [self._to_device(module.bias) for module in modules if module.bias is not None]
        assert len(biases) in (0, len(modules)), "fused projections must all have a bias, or none of them"
        weights = [self._to_device(module.weight) for module in modules]
        if len(modules) == 1:
            return weights[0], biases[0] if biases else None
        return torch.cat(weights), torch.cat(biases) if biases else None

    def _filled(self, module: Any, name: str) -> Any:
        """Return a module of the model with its weights, which a streamed model reads now."""
        if isinstance(self.model, StreamedModel):
            self.model.fill(module, name)
        return module

    def _release(self, module: Any) -> None:
        """Free a module's weights if they were read from disk for this purpose."""
        if isinstance(self.model, StreamedModel):
            module.to("meta")
