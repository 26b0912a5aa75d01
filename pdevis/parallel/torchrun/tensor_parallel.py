"""TensorParallel: a target whose layers are divided among the ranks of torchrun, as a `CausalLM` of rank 0.

    channel = RankChannel(start_ranks())                    # on every rank
    model = read_sharded_model(source, torch.bfloat16)
    target = TensorParallel(channel, HFCausalLM(model, "bfloat16"))
    if channel.ranks.rank > 0:
        channel.follow()

Shapes: T = tokens of this call, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdevis.models.causal_lm import CausalLM
from pdevis.parallel.torchrun.process_group import RankChannel


class TensorParallel:
    """A sharded model; each call on rank 0 runs on every rank. Construct it on every rank, use it on rank 0 only.

    Args:
        channel: to the other ranks.
        model: this rank's shard.
        name: prefix of the channel's handlers.
    """

    def __init__(self, channel: RankChannel, model: CausalLM, name: str = "target") -> None:
        self.model = model
        self.vocab_size = model.vocab_size
        self.context_length = model.context_length
        self.device = model.device
        self.tokens: list[int] = []
        self._channel = channel
        self._name = name
        channel.register(f"{name} forward", lambda ids: model.forward(self._tensor(ids)))
        channel.register(f"{name} prefill", lambda ids: model.prefill(self._tensor(ids)))
        channel.register(f"{name} rewind", model.rewind)

    @property
    def length(self) -> int:
        return self.model.length  # the same on every rank

    def forward(self, ids: Tensor) -> Tensor:
        return self._channel.call(f"{self._name} forward", ids.tolist())

    def prefill(self, ids: Tensor) -> None:
        self._channel.call(f"{self._name} prefill", ids.tolist())

    def rewind(self, length: int) -> None:
        if self._channel.alive:  # a closed channel has nothing to rewind; the next forward raises RankError
            self._channel.call(f"{self._name} rewind", length)

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.device)
