"""A drafter on the ranks that torchrun has started: its lanes use the processes and devices of the target."""

from __future__ import annotations

from typing import Any

from pdevis.loading.model_builder import LoadSpec, build_model
from pdevis.loading.weight_reader import unsupported_reason
from pdevis.models.layers import ShardSpec
from pdevis.parallel.collectives import ProcessGroup
from pdevis.parallel.draft_service import DraftService
from pdevis.parallel.torchrun.process_group import RankChannel
from pdevis.parallel.worker_process import Ready


class TorchrunDrafter:
    """A drafter on ranks, like `WorkerPool`; made on every one of them. Each call returns when all are done."""

    concurrent = False
    cut = False

    def __init__(self, channel: RankChannel, plan: LoadSpec, target_vocab: int) -> None:
        ranks = channel.ranks
        self.plan = plan
        self.has_sublayer_access = not unsupported_reason(plan.config)
        share = ShardSpec(ranks.rank, ranks.size) if self.has_sublayer_access else ShardSpec()
        self.devices = share.size
        model = build_model(plan, share)
        self.ready = Ready(model.vocab_size, model.context_length)
        service = DraftService(model, ProcessGroup(ranks.rank, ranks.size, lambda: None), target_vocab, plan.head_rows)
        self._channel = channel
        channel.register("drafter", service.obey)

    @property
    def alive(self) -> bool:
        return self._channel.alive

    def send(self, operation: str, *arguments: Any) -> None:
        self._channel.call("drafter", operation, *arguments)

    def call(self, operation: str, *arguments: Any) -> Any:
        return self._channel.call("drafter", operation, *arguments)

    def close(self) -> None:
        self._channel.close()
