"""DeviceLanes: runs the lanes of a window on several devices at the same time, with one process per device.

Every process ("rank") runs the same control flow on the same tokens. Layer ℓ is on rank ℓ mod N, so that N consecutive
layers are always on N devices, at whichever layer a window begins; the output head is sharded by vocabulary; embedding
and norms are replicated. Each sublayer step ends in one all-gather of the updates, after which all ranks hold the same
state. A layer that runs alone keeps one device busy while the others wait.

If an exchange takes a small part of a sublayer's time (`Communicator.fast`), the MLPs, which hold most of a layer's
weights, are not on one rank each: every rank has some rows of every MLP, for two more exchanges per MLP. All ranks then
work on each MLP, including that of a layer that runs alone. Each row's product is the same on any rank. A rank without
an attention to compute reads its part of the next MLP matrix meanwhile, to have it in the cores' shared cache.

Shapes: T = tokens of this forward, H = hidden size, V = vocabulary, N = ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pdevis.drafting.wide_layers import WideLayer
from pdevis.models.causal_lm import CHUNK, argmax_logprob
from pdevis.models.layers import ShardSpec
from pdevis.models.stack import DecoderStack, Step
from pdevis.parallel.collectives import Communicator, broadcast

L3_SIZE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


class DeviceLanes:
    """One rank's part of a `LaneExecutor`.

    Args:
        stack: a drafter that holds this rank's shard of the weights (`ShardSpec`), with its MLPs split by rows if the
            communicator is fast.
        communicator: connects the ranks.
        vocab: number of ids that the whole output head covers.
    """

    def __init__(self, stack: DecoderStack, communicator: Communicator, vocab: int) -> None:
        self.stack = stack
        self.communicator = communicator
        self.vocab = vocab
        self.holds = ShardSpec(communicator.rank, communicator.size).holds
        self.splits_mlps = communicator.fast
        mlp_bytes = _mlp_shard_bytes(stack, communicator.size) * communicator.size
        self.prefetches_mlps = self.splits_mlps and mlp_bytes <= _l3_bytes() // 2
        self.layers = len(stack.layers)
        self.is_whole = communicator.size == 1
        self.all_ranks = range(communicator.size)

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        if self.stack.static and self.is_whole and trace is None:
            self.communicator.all_gather([], [], ids.shape, ids)
            return self.stack.run_layers(ids)
        step = self.stack.begin(len(ids))
        h = self.stack.embed(ids)
        if trace is not None:
            trace.append(h)
        for layer in range(self.layers):
            if self.splits_mlps:
                h = h + self.attention([layer], [h], step)[0]
                h = h + self.mlp([layer], [h])[0]
            else:
                outputs: list[Tensor] = []
                if self.holds(layer):
                    h = h + self.stack.attention(layer, h, step)
                    outputs = [h + self.stack.mlp(layer, h)]
                h = self._gather_from_layers(outputs, [layer], h)[0]
            if trace is not None:
                trace.append(h)
        self.stack.commit(step)
        return h

    def prefill(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK):
            self.run_layers(chunk)

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]:
        updates = [self.stack.attention(i, h, step) for i, h in zip(layers, inputs, strict=True) if self.holds(i)]
        if self.prefetches_mlps and not updates:
            self.stack.mlp_inner(layers[0], inputs[0][:1])
        return self._gather_from_layers(updates, layers, inputs[0])

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.splits_mlps:
            weights = self.stack.weights
            inner = [self.stack.mlp_inner(i, h) for i, h in zip(layers, inputs, strict=True)]
            inner = self.communicator.gather_columns(inner, weights.mlp_size, weights.mlp_block)
            outer = [self.stack.mlp_outer(i, x) for i, x in zip(layers, inner, strict=True)]
            return self.communicator.gather_columns(outer, inputs[0].shape[1])
        updates = [self.stack.mlp(i, h) for i, h in zip(layers, inputs, strict=True) if self.holds(i)]
        return self._gather_from_layers(updates, layers, inputs[0])

    def run_prepared(self, layer: WideLayer, h: Tensor, step: Step) -> Tensor:
        """Run a wide layer, whose heads and MLP rows are divided among the ranks: three exchanges, whatever W is.

        Without split MLPs each rank runs the MLPs of its own layers, and there are two exchanges.
        """
        group = layer.group
        if group.sublayers != "mlp":
            updates = []
            if layer.attention is not None:
                updates = [layer.attention.output(self.stack.mix_heads(layer.attention, h, step))]
            elif self.prefetches_mlps and layer.mlps:
                layer.mlps[0].inner(h[:1])
            h = h + self._sum_over_owners(updates, group.layers, h)
        for batch, mlp in zip(group.mlp_batches, layer.mlps, strict=True):
            if self.splits_mlps:
                weights = self.stack.weights
                inner = mlp.inner(h).unflatten(1, (len(batch), -1)).unbind(1)
                whole = self.communicator.gather_columns(inner, weights.mlp_size, weights.mlp_block)
                outer = mlp.down(torch.cat(whole, dim=1) if len(whole) > 1 else whole[0])
                h = h + self.communicator.gather_columns([outer], h.shape[1])[0]
            else:
                h = h + self._sum_over_owners([] if mlp is None else [mlp.down(mlp.inner(h))], batch, h)
        return h

    def gather_rows(self, part: Tensor) -> tuple[Tensor, range]:
        """Collect a `down` matrix whose rows are divided among the ranks, all of which call this at the same time."""
        if not self.splits_mlps or self.is_whole:
            return part, range(len(part))
        size = self.stack.weights.embedding.shape[1]
        columns = [
            self.communicator.gather_columns([chunk], size)[0].clone() for chunk in part.t().contiguous().split(CHUNK)
        ]
        return torch.cat(columns).t(), ShardSpec(self.communicator.rank, self.communicator.size).rows(size)

    def _sum_over_owners(self, updates: list[Tensor], layers: Sequence[int], like: Tensor) -> Tensor:
        """Sum the updates of all ranks that hold one of the layers; `updates` has this rank's, if it is one of them."""
        owners = sorted({layer % self.communicator.size for layer in layers})
        gathered = self.communicator.all_gather(updates, owners, like.shape, like)
        return gathered[0] if len(gathered) == 1 else torch.stack(gathered).sum(0)

    def logits(self, h: Tensor) -> Tensor:
        shard = self.stack.logits(h)
        if self.communicator.size == 1:
            return shard
        return self.communicator.gather_columns([shard], self.vocab)[0].clone()

    def argmax(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """Combine the argmax of each rank's shard of the vocabulary, for which each rank sends three numbers."""
        start = self.stack.weights.head_start
        logits = self.stack.logits(h)[0, : max(vocab - start, 0)]
        if self.communicator.size == 1:
            return argmax_logprob(logits)
        if len(logits):
            index, logprob = argmax_logprob(logits)
            largest = logits[index].double()
            # the logit, its id (float64 represents all ids exactly), and the shard's logsumexp
            summary = torch.cat([largest, index + float(start), largest - logprob])
        else:
            summary = logits.new_full((3,), -torch.inf, dtype=torch.float64)
        gathered = self.communicator.all_gather([summary], self.all_ranks, summary.shape, summary)
        summaries = torch.stack(gathered)  # [N, 3]
        winner = summaries[:, 0].argmax()  # the lowest id on ties, as on one device
        logprob = summaries[winner, :1] - summaries[:, 2].logsumexp(0)
        return summaries[winner, 1:2].long(), logprob.float()

    def broadcast_token(self, ids: Tensor) -> Tensor:
        return broadcast(self.communicator, ids)

    def _gather_from_layers(self, items: list[Tensor], layers: Sequence[int], like: Tensor) -> list[Tensor]:
        """Gather one item per layer from the ranks that hold the layers; `items` are this rank's."""
        owners = [layer % self.communicator.size for layer in layers]
        return self.communicator.all_gather(items, owners, like.shape, like)


def _mlp_shard_bytes(stack: DecoderStack, ranks: int) -> int:
    """Bytes of one rank's slice of gate_up."""
    weights = stack.weights
    item_bytes = 1 if weights.precision == "int8" else weights.dtype.itemsize
    return 2 * weights.mlp_size // ranks * weights.embedding.shape[1] * item_bytes


def _l3_bytes() -> int:
    """L3 size in bytes from sysfs; 0 if unknown."""
    try:
        return int(L3_SIZE_FILE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0
