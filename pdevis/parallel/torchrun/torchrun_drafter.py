"""TorchrunDrafter: a drafter on the ranks that torchrun has started, whose lanes use the processes and devices of the
target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from pdevis.devices import DeviceSlot
from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.loading.weights.families import unsupported_reason
from pdevis.models.layers import ShardSpec
from pdevis.parallel.collectives import DistributedCommunicator
from pdevis.parallel.draft_service import DraftService
from pdevis.parallel.torchrun.process_group import RankChannel
from pdevis.parallel.worker_process import WorkerInfo


class TorchrunDrafter:
    """A drafter on the ranks of a channel; a `DrafterBackend` (remote.py). To be created on every rank.

    Only rank 0 uses it further; the others follow the channel. Every request returns when all ranks have finished.

    Args:
        channel: connects the ranks.
        load_spec: the drafter to load; every rank loads its shard, or the whole model if it runs through transformers.
        target_vocab: ids from here on are never proposed.
    """

    concurrent = False
    splits_mlps = False

    def __init__(self, channel: RankChannel, load_spec: LoadSpec, *, target_vocab: int) -> None:
        ranks = channel.ranks
        self.load_spec = load_spec
        self.has_sublayer_access = not unsupported_reason(load_spec.config)
        shard = ShardSpec(ranks.rank, ranks.size) if self.has_sublayer_access else ShardSpec()
        self.devices = shard.size
        model = build_model(load_spec, shard)
        self.info = WorkerInfo(model.vocab_size, model.context_length)
        communicator = DistributedCommunicator(ranks.rank, ranks.size, heartbeat=lambda: None)
        service = DraftService(model, communicator, target_vocab=target_vocab, head_rows=load_spec.head_rows)
        self._channel = channel
        channel.register("drafter", service.dispatch)

    @property
    def alive(self) -> bool:
        return self._channel.alive

    def send(self, operation: str, *arguments: Any) -> None:
        self._channel.call("drafter", operation, *arguments)

    def call(self, operation: str, *arguments: Any) -> Any:
        return self._channel.call("drafter", operation, *arguments)

    def respawn_on(self, device_slots: Sequence[DeviceSlot]) -> NoReturn:
        raise ValueError("draft_device = 'ranks': such a drafter cannot be started on other devices")

    def close(self) -> None:
        self._channel.close()
