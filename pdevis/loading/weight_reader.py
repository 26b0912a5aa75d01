"""The weights of a `DecoderStack`, taken from a transformers model: fused, permuted and put into a weight format.

Three changes, all exact: q, k and v become one product, gate and up become one; the rows of q and k are reordered so
that the two halves that a rotary embedding turns lie side by side, which makes it one complex product; and for formats
with 8-bit activations the residual stream and the MLPs' inner states are rotated (rotation.py).

Shapes: H = hidden size, N = query heads, K = key/value heads, D = head size, I = MLP size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pdevis.loading.safetensors_stream import StreamedModel
from pdevis.loading.shard_spec import WHOLE, ShardSpec
from pdevis.models.layers import MLP, Attention, Layer, StackWeights
from pdevis.models.linear import DRAFTER_FORMATS, FORMATS, ROTATED, DenseLinear, Linear, storage_dtype
from pdevis.models.norm import Norm, UnitNorm
from pdevis.models.rotation import BlockRotation, Rotation, TurnedLinear

MOST_PARTS = 4  # cores that cut an MLP and still have the bits of one; more of them round otherwise on a small model
VECTOR = 32  # numbers that a CPU kernel takes at a time; a rest that is less goes another way and rounds otherwise
FAMILIES = ("llama", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not change with the length


def unsupported_reason(config: Any) -> str | None:
    """Why a transformers config cannot run on a `DecoderStack`; None where it can."""
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} (supported: {', '.join(FAMILIES)})"
    if getattr(config, "quantization_config", None):
        return "weights that are quantised already"
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
    consume: bool = False,
    rotate: bool | None = None,
    head_rows: int | None = None,
    share: ShardSpec = WHOLE,
    drafter: bool = False,
) -> StackWeights:
    """Build the weights of a stack from a transformers model of a supported family.

    Args:
        model: a transformers `…ForCausalLM` in eval mode, or a `StreamedModel` (shards.py).
        precision: a resolved weight format (`resolve_precision`).
        device: where the weights are to live.
        consume: free each layer of `model` once it is read, so that two copies never stand in memory.
        rotate: rotate the residual stream (rotation.py); None: where the format wants it.
        head_rows: ids that the output head covers, from 0 on; None: all. A drafter may do with fewer.
        share: what to keep of layers and head.
        drafter: take the formats that are quickest for one token (linear.py).

    Raises:
        ValueError: where the architecture is not one that a stack computes exactly, or there is no row for a device.
    """
    config = model.config
    reason = unsupported_reason(config)
    if reason:
        raise ValueError(f"{config.name_or_path or config.model_type}: DecoderStack does not support {reason}")
    streamed = isinstance(model, StreamedModel)
    dtype = storage_dtype(precision)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_size = min(head_rows or config.vocab_size, config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    eps = config.rms_norm_eps

    def place(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype)

    rotate = precision in ROTATED if rotate is None else rotate
    rotation = Rotation(config.hidden_size) if rotate else None
    build = (DRAFTER_FORMATS if drafter else FORMATS)[precision]
    inner = BlockRotation(config.intermediate_size, dtype, MOST_PARTS) if rotate else None
    mixed = BlockRotation(heads * head_dim, dtype) if rotate else None

    aligned = min(config.intermediate_size & -config.intermediate_size, VECTOR)
    block = max(aligned, inner.block if inner else 1)  # both are powers of two
    if share.cut and share.size > (most := config.intermediate_size // block):
        raise ValueError(f"draft_device names {share.size} cores: at most {most} can share this model's MLPs")

    def fused(modules: Sequence[torch.nn.Linear]) -> tuple[Tensor, Tensor | None]:
        biases = [place(module.bias) for module in modules if module.bias is not None]
        assert len(biases) in (0, len(modules)), "fused projections share whether they have a bias"
        weights = [place(module.weight) for module in modules]
        join = torch.cat if len(modules) > 1 else itemgetter(0)  # one module's weight is shared, not copied
        return join(weights), join(biases) if biases else None

    def reads(norm_weight: Tensor, *modules: torch.nn.Linear, reorder: Callable[[Tensor], Tensor] = _as_is) -> Linear:
        """A product on the normed residual stream; `reorder` may also choose rows, first: the others cost no work."""
        weight, bias = (None if part is None else reorder(part) for part in fused(modules))
        if rotation:
            weight = rotation.of_rows(weight * (place(norm_weight) * config.hidden_size**0.5))
        # bitsandbytes leaves the output head alone, and so transformers does
        return (DenseLinear if precision == "nf4" and modules[0] is model.lm_head else build)(weight, bias)

    def writes(module: torch.nn.Linear, turn: BlockRotation | None, part: range | None = None) -> Linear:
        """A product whose result, or a part of it, is added to the residual stream; its input is turned already."""
        weight, bias = fused([module])
        if rotation:
            weight, bias = rotation.of_columns(weight), None if bias is None else rotation.of_rows(bias)
        if part is not None:
            weight, bias = weight[part.start : part.stop], None if bias is None else bias[part.start : part.stop]
        return build(weight if turn is None else turn(weight), bias)

    def pair_halves(rows: Tensor) -> Tensor:  # [(N + 2K) D, …]: q and k from (half, half) to (pair, pair, …)
        turned = (heads + kv_heads) * head_dim
        qk = rows[:turned].unflatten(0, (heads + kv_heads, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
        return torch.cat([qk, rows[turned:]])

    def norm(weight: Tensor) -> Norm | UnitNorm:
        return UnitNorm(config.hidden_size, eps, dtype) if rotation else Norm(place(weight), eps)

    def qk_norm(attention: Any) -> Norm | None:
        if not hasattr(attention, "q_norm"):
            return None
        q, k = (place(part.weight).unflatten(0, (2, -1)).t().flatten() for part in (attention.q_norm, attention.k_norm))
        return Norm(torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)]), eps)

    def read_attention(layer: Any) -> Attention:
        part, before = layer.self_attn, layer.input_layernorm.weight
        qkv = reads(before, part.q_proj, part.k_proj, part.v_proj, reorder=pair_halves)
        output = writes(part.o_proj, mixed)
        return Attention(norm(before), qkv, qk_norm(part), TurnedLinear(mixed, output) if mixed else output)

    def read_mlp(layer: Any) -> MLP:
        part, before = layer.mlp, layer.post_attention_layernorm.weight
        inside = share.mlp_rows(config.intermediate_size, block)
        out = share.mlp_rows(config.hidden_size)

        def cut(rows: Tensor) -> Tensor:  # the same rows of the gate's and of the up projection
            return rows.unflatten(0, (2, -1))[:, inside.start : inside.stop].flatten(0, 1)

        gate_up = reads(before, part.gate_proj, part.up_proj, reorder=cut)
        return MLP(norm(before), gate_up, inner, writes(part.down_proj, inner, out))

    def read_layer(layer: Any, here: bool) -> Layer:
        return Layer(read_attention(layer) if here else None, read_mlp(layer) if here or share.cut else None)

    def filled(module: Any, name: str) -> Any:
        if streamed:
            model.fill(module, name)
        return module

    # The largest matrices first: their copies in passing then stand beside nothing else.
    embedding = place(filled(model.model.embed_tokens, "model.embed_tokens").weight)
    embedding = rotation.of_rows(embedding) if rotation else embedding
    if streamed:
        model.model.embed_tokens.to("meta")
    last_norm = place(filled(model.model.norm, "model.norm").weight)
    part = share.rows(head_size)
    head = reads(last_norm, filled(model.lm_head, "lm_head"), reorder=lambda rows: rows[part.start : part.stop])
    if streamed:
        model.lm_head.to("meta")
    layers: list[Layer] = []
    for number, layer in enumerate(model.model.layers):
        here = share.holds(number)
        layers.append(read_layer(filled(layer, f"model.layers.{number}") if here or share.cut else layer, here))
        if consume or streamed:
            layer.to("meta")
    rotary = model.model.rotary_emb
    return StackWeights(
        family=config.model_type,
        precision=precision,
        device=device,
        dtype=dtype,
        layers=layers,
        embedding=embedding,
        final_norm=norm(last_norm),
        head=head,
        head_start=part.start,
        frequencies=rotary.inv_freq.detach().to(device, torch.float32),
        rope_scale=float(rotary.attention_scaling),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_size=config.intermediate_size,
        mlp_block=block,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
    )


def _as_is(rows: Tensor) -> Tensor:
    return rows
