"""Wide layers: the layers of a group computed as one layer, whose matrices hold the weights of all lanes.

All attentions of a group read the same normed hidden state and all its MLPs the same later one. So a group needs one
norm (the lanes' norm weights are folded into the matrices), one product for all queries, keys and values, one attention
call, one output product, which also sums the lanes, one product for all gates and up projections, and one down product.
That is the number of kernels of a single layer, which is what bounds a small drafter. The KV cache is that of the exact
layers: a wide layer reads what exact passes have written, and writes entries in the same form.

In the staggered form each MLP reads the attention updates up to its own layer's, as in `DraftEngine`. Its attention
outputs, gates and up projections are one product per lane.

Formats with plain matrices (float32, bfloat16, …) let the exact layers use parts of the wide matrices, so memory does
not grow; packed and quantised ones are copied.

Shapes: T = tokens, H = hidden size, W = lanes of a group, N = query heads, D = head size, I = MLP size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pdevis.drafting.corrections import NO_CORRECTIONS, Corrections, LinearMap
from pdevis.drafting.schedule import Group, Schedule
from pdevis.models.layers import MLP, Attention, RMSNorm, UnitRMSNorm
from pdevis.models.linear import DRAFTER_FORMATS, DenseLinear, Linear
from pdevis.models.rotation import RotatedInputLinear
from pdevis.models.stack import DecoderStack, Step
from pdevis.models.static.static_forward import Block

MAX_PREPARED = 8  # schedules of a stack whose wide layers stay in memory


class PreparedLayer(Protocol):
    """A group of a static schedule, ready to run."""

    def run(self, stack: DecoderStack, h: Tensor, step: Step) -> Tensor:
        """Return the hidden state [T, H] after the group, for h [T, H] before it; write its cache entries."""
        ...


@dataclass(frozen=True)
class WideLayer:
    """A group whose lanes read common inputs: all attentions h, each batch of MLPs all updates before it.

    `attention` is None if it is left out, or if no lane's attention is on this device; so is an MLP in the latter case.
    """

    group: Group
    attention: Attention | None
    mlps: tuple[MLP | None, ...]  # one per batch

    def run(self, stack: DecoderStack, h: Tensor, step: Step) -> Tensor:
        if self.attention is not None:
            h = h + self.attention.output(stack.mix_heads(self.attention, h, step))
        for mlp in self.mlps:
            h = h + mlp.down(mlp.inner(h))
        return h


@dataclass(frozen=True)
class StaggeredLayer:
    """A group whose MLP j reads h and the attention updates of lanes 0 to j (and earlier batches of MLPs)."""

    attention: Attention  # its output is not used
    outputs: tuple[Linear, ...]  # one per lane, [T, N D] -> [T, H]
    lanes: tuple[MLP, ...]  # one per lane
    downs: tuple[Linear, ...]  # one per batch

    def run(self, stack: DecoderStack, h: Tensor, step: Step) -> Tensor:
        mixed = stack.mix_heads(self.attention, h, step).chunk(len(self.lanes), dim=1)
        states = [h]
        for output, heads in zip(self.outputs, mixed):
            states.append(states[-1] + output(heads))
        first, update = 0, None
        size = -(-len(self.lanes) // len(self.downs))
        for down in self.downs:
            batch = range(first, min(first + size, len(self.lanes)))
            inputs = [states[lane + 1] if update is None else states[lane + 1] + update for lane in batch]
            inner = torch.cat([self.lanes[lane].inner(state) for lane, state in zip(batch, inputs)], dim=1)
            update = down(inner) if update is None else update + down(inner)
            first = batch.stop
        return states[-1] + update


@dataclass(frozen=True)
class PreparedSchedule:
    """A static schedule and its layers.

    Args:
        schedule: the groups.
        layers: one per group, in order.
        added_bytes: memory of matrices that the exact drafter does not have.
    """

    schedule: Schedule
    layers: tuple[PreparedLayer, ...]
    added_bytes: int

    @cached_property
    def blocks(self) -> tuple[Block, ...] | None:
        """The layers for forwards in static shapes; None if they are staggered."""
        if not all(isinstance(layer, WideLayer) for layer in self.layers):
            return None
        return tuple(Block(layer.attention, layer.mlps) for layer in self.layers)


GatherRows = Callable[[Tensor], tuple[Tensor, range]]  # some rows of a matrix -> the whole matrix, and which they are


def all_rows(part: Tensor) -> tuple[Tensor, range]:
    """Return a matrix that is whole already, and its rows: the `GatherRows` of a single device."""
    return part, range(len(part))


def prepare_schedule(
    stack: DecoderStack,
    schedule: Schedule,
    *,
    stagger: bool = False,
    corrections: Corrections = NO_CORRECTIONS,
    gather_rows: GatherRows = all_rows,
) -> PreparedSchedule:
    """Make the wide layers of a schedule, or return those made before.

    Args:
        stack: the drafter, or one device's shard of it. Its layers become views of the wide matrices if possible.
        schedule: of this drafter.
        stagger: make staggered layers.
        corrections: of this schedule; not with staggered layers.
        gather_rows: collects a `down` matrix [H, …] whose rows are divided among devices, which all call this.
    """
    assert schedule.layers == len(stack.layers), "a schedule of another drafter"
    key = (schedule, stagger, id(corrections))  # which the value keeps alive
    if key not in stack.prepared:
        # another model with the same weights keeps using the exact layers as they are
        maker = _Maker(stack, corrections, shares_matrices=not stack.shares_weights, gather_rows=gather_rows)
        layers = tuple(maker.make(group, stagger=stagger) for group in schedule.groups)
        while len(stack.prepared) >= MAX_PREPARED:
            oldest, _ = stack.prepared.pop(next(iter(stack.prepared)))
            if stack.static:
                stack.static.drop(oldest.blocks)
        stack.prepared[key] = (PreparedSchedule(schedule, layers, maker.added_bytes), corrections)
    return stack.prepared[key][0]


def make_layer(stack: DecoderStack, group: Group, corrections: Corrections = NO_CORRECTIONS) -> PreparedLayer:
    """Make the wide layer of a group to try it out: the stack's own layers stay as they are."""
    return _Maker(stack, corrections, shares_matrices=False).make(group, stagger=False)


def make_layers(
    stack: DecoderStack, schedule: Schedule, corrections: Corrections = NO_CORRECTIONS
) -> list[PreparedLayer]:
    """Make the layers of a schedule to try it out, as `make_layer`."""
    return [make_layer(stack, group, corrections) for group in schedule.groups]


class _Maker:
    """Makes the layers of one schedule, and counts the memory that they add."""

    def __init__(
        self,
        stack: DecoderStack,
        corrections: Corrections,
        *,
        shares_matrices: bool,
        gather_rows: GatherRows = all_rows,
    ) -> None:
        self.stack, self.corrections, self.gather_rows = stack, corrections, gather_rows
        self.weights = stack.weights
        self.size = stack.weights.embedding.shape[1]
        self.make_linear = DRAFTER_FORMATS[stack.weights.precision]
        self.added_bytes = 0
        self.shares_matrices = shares_matrices

    def make(self, group: Group, *, stagger: bool) -> PreparedLayer:
        layers = self.stack.layers
        held = [layer for layer in group.layers if layers[layer].attention is not None]
        attention = self.attention(held) if held and group.sublayers != "mlp" else None
        if stagger and len(group.layers) > 1:
            return self.staggered(group, attention)
        batches = [[layer for layer in batch if layers[layer].mlp is not None] for batch in group.mlp_batches]
        mlps = tuple(self.mlp(batch) if batch else None for batch in batches)
        if self.shares_matrices:
            for lanes, wide in ((held, attention), *zip(batches, mlps)):
                if wide is not None:
                    self.share(lanes, wide)
        return WideLayer(group, attention, mlps)

    def staggered(self, group: Group, attention: Attention) -> StaggeredLayer:
        lanes = tuple(self.stack.layers[layer].mlp for layer in group.layers)
        outputs = tuple(self.stack.layers[layer].attention.output for layer in group.layers)
        downs = tuple(self.side_by_side([self.stack.layers[i].mlp.down for i in batch]) for batch in group.mlp_batches)
        return StaggeredLayer(attention, outputs, lanes, downs)

    def attention(self, lanes: Sequence[int]) -> Attention:
        """Make the common attention of some layers; of one layer without a correction, its own."""
        parts = [self.stack.layers[layer].attention for layer in lanes]
        maps = [self.corrections.get("attention", layer) for layer in lanes]
        if len(parts) == 1 and maps[0] is None:
            return parts[0]
        norm = self.unit_norm(parts[0].norm)
        weights = [self.reader(part.qkv, part.norm, linear_map) for part, linear_map in zip(parts, maps)]
        qkv = self.stacked(weights, [part.qkv.bias for part in parts])
        output = self.side_by_side([part.output for part in parts])
        qk_norm = parts[0].qk_norm
        if qk_norm is not None:
            qk_norm = RMSNorm(torch.cat([part.qk_norm.weight for part in parts]), qk_norm.eps)
        layers = range(lanes[0], lanes[-1] + 1, lanes[1] - lanes[0] if len(lanes) > 1 else 1)
        return Attention(norm=norm, qkv=qkv, qk_norm=qk_norm, output=output, layers=layers)

    def mlp(self, lanes: Sequence[int]) -> MLP:
        """Make the common MLP of some layers; of one layer without corrections, its own."""
        parts = [self.stack.layers[layer].mlp for layer in lanes]
        maps = [self.corrections.get("mlp", layer) for layer in lanes]
        writers = [self.corrections.get("write", layer) for layer in lanes]
        if len(parts) == 1 and maps[0] is None and writers[0] is None:
            return parts[0]
        norm = self.unit_norm(parts[0].norm)
        weights = [self.reader(part.gate_up, part.norm, linear_map) for part, linear_map in zip(parts, maps)]
        gate_up = self.stacked(weights, [part.gate_up.bias for part in parts])
        down = self.side_by_side([part.down for part in parts], writers)
        return MLP(norm=norm, gate_up=gate_up, hadamard=parts[0].hadamard, down=down, lanes=len(parts))

    def share(self, lanes: Sequence[int], wide: Attention | MLP) -> None:
        """Let the exact layers use their parts of plain wide matrices, in place of matrices of their own."""
        kind = "attention" if isinstance(wide, Attention) else "mlp"
        names = ("qkv", "output") if kind == "attention" else ("gate_up", "down")
        reader, writer = (getattr(wide, name) for name in names)
        if len(lanes) < 2 or not isinstance(reader, DenseLinear):
            return
        for i, layer in enumerate(lanes):
            if (kind, layer) in self.stack.shared_sublayers:  # with an earlier schedule
                continue
            self.stack.shared_sublayers.add((kind, layer))
            part = getattr(self.stack.layers[layer], kind)
            rows = _part(reader, i, len(lanes), dim=0)
            columns = DenseLinear(_part(writer, i, len(lanes), dim=1).weight, getattr(part, names[1]).bias)
            changes: dict[str, Any] = {}
            if self.corrections.get(kind, layer) is None:
                changes |= {"norm": wide.norm, names[0]: rows}
                self.added_bytes -= rows.weight.nbytes
            if kind == "attention" or self.corrections.get("write", layer) is None:
                changes[names[1]] = columns
                self.added_bytes -= columns.weight.nbytes
            shared = replace(self.stack.layers[layer], **{kind: replace(part, **changes)})
            self.stack.layers[layer] = self.weights.layers[layer] = shared  # the matrices before are freed
            if self.stack.static:
                self.stack.static.forget()

    # ---- matrices ----

    def unit_norm(self, norm: RMSNorm | UnitRMSNorm) -> UnitRMSNorm:
        if isinstance(norm, UnitRMSNorm):
            return norm
        return UnitRMSNorm(self.size, norm.eps, self.weights.dtype, self.weights.device)

    def reader(self, linear: Linear, norm: RMSNorm | UnitRMSNorm, linear_map: LinearMap | None) -> Tensor:
        """Return a matrix that reads the unit-normed state: with the norm's weight and a correction folded in."""
        weight = _widened(linear.dense_weight())
        if isinstance(norm, RMSNorm):
            weight = weight * (norm.weight.to(weight) * self.size**0.5)
        return weight if linear_map is None else linear_map.fold_into_reader(weight)

    def stacked(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Linear:
        """Return the product whose results are those of all these matrices, one after another."""
        rows = torch.cat([weight.to(self.weights.dtype) for weight in weights])
        return self.linear(rows, None if biases[0] is None else torch.cat(list(biases)))

    def side_by_side(self, linears: Sequence[Linear], writers: Sequence[LinearMap | None] = ()) -> Linear:
        """Return the product that sums the results of some linear layers, each applied to its part of the input."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for i, linear in enumerate(linears):
            inner = linear.linear if isinstance(linear, RotatedInputLinear) else linear
            weight, bias = inner.dense_weight(), inner.bias
            if writers and (writer := writers[i]):
                weight = self.written(writer, _widened(weight))
                bias = None if bias is None else self.written(writer, bias[:, None])[:, 0]
            weights.append(weight)
            biases += [] if bias is None else [bias]
        bias = torch.stack(biases).sum(0) if biases else None
        product = self.linear(torch.cat([weight.to(self.weights.dtype) for weight in weights], dim=1), bias)
        if isinstance(linears[0], RotatedInputLinear):
            return RotatedInputLinear(linears[0].hadamard, product)
        return product

    def written(self, writer: LinearMap, part: Tensor) -> Tensor:
        """Return this device's rows of a matrix [H, …] whose results a correction maps; `part` has its rows before."""
        whole, rows = self.gather_rows(part)
        return writer.fold_into_writer(whole)[rows.start : rows.stop]

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        self.added_bytes += weight.numel() * (1 if self.weights.precision == "int8" else weight.element_size())
        return self.make_linear(weight, bias)


def _part(linear: DenseLinear, index: int, count: int, dim: int) -> DenseLinear:
    """Return one of `count` equal parts of a layer's rows or columns, as a view."""
    weight = linear.weight.chunk(count, dim)[index]
    bias = linear.bias if dim == 1 or linear.bias is None else linear.bias.chunk(count)[index]
    return DenseLinear(weight, bias)


def _widened(weight: Tensor) -> Tensor:
    """Return a matrix in at least float32, in which products with maps and norms' weights are computed."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
