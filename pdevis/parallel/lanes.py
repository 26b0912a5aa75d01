"""DeviceLanes: the lanes of a window on several devices at the same time, one process a device.

Every process ("rank") runs the same control flow on the same tokens. Layer ℓ lives on rank ℓ mod N, so that N
consecutive layers always lie on N devices, wherever a window begins; the output head is cut by vocabulary; embedding
and norms are everywhere. Each sublayer step ends in one exchange of the updates, after which all ranks know all of them
and go on alike. A layer that runs alone keeps one device busy and lets the others wait.

Where an exchange takes a small part of a sublayer's time (`Link.fast`), the MLPs, which hold most of a layer's weights,
do not live on one rank: each has a part of the rows of every one, for two exchanges more. All ranks then
work on each MLP, also on that of a layer that runs alone. A row's product is the same wherever it is computed. A rank
that has no attention to compute reads its part of the next matrix meanwhile: the cores' common cache keeps it.

Shapes: T = tokens of this forward, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pdevis.drafting.engine import argmax_logprob
from pdevis.loading.shard_spec import ShardSpec
from pdevis.models.causal_lm import CHUNK
from pdevis.models.stack import DecoderStack, Step
from pdevis.parallel.collectives import Link

CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


class DeviceLanes:
    """One rank's part of a `LaneExecutor`.

    Args:
        stack: a drafter that holds this rank's share of the weights (models/share.py), cut where the link is fast.
        link: to the other ranks.
        vocab: ids that the whole output head covers.
    """

    def __init__(self, stack: DecoderStack, link: Link, vocab: int) -> None:
        self.stack = stack
        self.link = link
        self.vocab = vocab
        self.holds = ShardSpec(link.rank, link.size).holds
        self.cut = link.fast
        self.warms = self.cut and _part_bytes(stack, link.size) * link.size <= _cache_bytes() // 2
        self.layers = len(stack.layers)
        self.everybody = range(link.size)

    def run_layers(self, ids: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        if self.stack.whole and self.link.size == 1 and trace is None:  # compiled
            self.link.share([], [], ids.shape, ids)
            return self.stack.run_layers(ids)
        step = self.stack.begin(len(ids))
        h = self.stack.embed(ids)
        if trace is not None:
            trace.append(h)
        for layer in range(self.layers):
            if self.cut:
                h = h + self.attention([layer], [h], step)[0]
                h = h + self.mlp([layer], [h])[0]
            else:
                after: list[Tensor] = []
                if self.holds(layer):
                    h = h + self.stack.attention(layer, h, step)
                    after = [h + self.stack.mlp(layer, h)]
                h = self._share(after, [layer], h)[0]
            if trace is not None:
                trace.append(h)
        self.stack.commit(step)
        return h

    def prefill(self, ids: Tensor) -> None:
        for chunk in ids.split(CHUNK):
            self.run_layers(chunk)

    def attention(self, layers: Sequence[int], inputs: Sequence[Tensor], step: Step) -> list[Tensor]:
        mine = [self.stack.attention(i, h, step) for i, h in zip(layers, inputs, strict=True) if self.holds(i)]
        if self.warms and not mine:
            self.stack.mlp_inner(layers[0], inputs[0][:1])
        return self._share(mine, layers, inputs[0])

    def mlp(self, layers: Sequence[int], inputs: Sequence[Tensor]) -> list[Tensor]:
        if self.cut:
            inner = [self.stack.mlp_inner(i, h) for i, h in zip(layers, inputs, strict=True)]
            inner = self.link.join(inner, self.stack.weights.mlp_size, self.stack.weights.mlp_block)
            outer = [self.stack.mlp_outer(i, x) for i, x in zip(layers, inner, strict=True)]
            return self.link.join(outer, inputs[0].shape[1])
        mine = [self.stack.mlp(i, h) for i, h in zip(layers, inputs, strict=True) if self.holds(i)]
        return self._share(mine, layers, inputs[0])

    def logits(self, h: Tensor) -> Tensor:
        part = self.stack.logits(h)
        return part if self.link.size == 1 else self.link.join([part], self.vocab)[0].clone()

    def argmax(self, h: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """Each rank looks through its own part of the vocabulary; three numbers a rank are exchanged."""
        start = self.stack.weights.head_start
        part = self.stack.logits(h)[0, : max(vocab - start, 0)]
        if self.link.size == 1:
            return argmax_logprob(part)
        if len(part):
            place, certain = argmax_logprob(part)
            value = part[place].double()
            found = torch.cat([value, place + float(start), value - certain])  # float64 counts ids exactly
        else:
            found = part.new_full((3,), -torch.inf, dtype=torch.float64)
        parts = torch.stack(self.link.share([found], self.everybody, found.shape, found))  # [N, 3]
        first = parts[:, 0].argmax()  # the lower ids on a tie, as on one device
        certain = parts[first, :1] - parts[:, 2].logsumexp(0)
        return parts[first, 1:2].long(), certain.float()

    def broadcast_token(self, ids: Tensor) -> Tensor:
        return self.link.share([ids] if self.link.rank == 0 else [], [0], ids.shape, ids)[0].clone()

    def _share(self, mine: list[Tensor], layers: Sequence[int], like: Tensor) -> list[Tensor]:
        return self.link.share(mine, [layer % self.link.size for layer in layers], like.shape, like)


def _part_bytes(stack: DecoderStack, ranks: int) -> int:
    """Of a rank's part of an MLP's first matrix."""
    w = stack.weights
    return 2 * w.mlp_size // ranks * w.embedding.shape[1] * (1 if w.precision == "int8" else w.dtype.itemsize)


def _cache_bytes() -> int:
    """Of the cache that the cores share, as Linux tells; 0 where nobody does."""
    try:
        return int(CACHE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0
