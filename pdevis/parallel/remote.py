"""The main process's view of a drafter that runs elsewhere: as a model, and as a `Drafter`.

Shapes: T = tokens of this call, V = vocabulary, G = draft tokens of a round.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from pdevis.config import RANKS, DecodeConfig, DraftConfig
from pdevis.generation import Draft
from pdevis.loading.build import Built
from pdevis.loading.load_spec import LoadSpec
from pdevis.models.causal_lm import CausalLM
from pdevis.parallel.torchrun.torchrun_drafter import TorchrunDrafter
from pdevis.parallel.worker_pool import WorkerError, WorkerPool


class RemoteModel:
    """The drafter as a `CausalLM`: for decoding with it alone. Its logits come to the CPU."""

    device = torch.device("cpu")

    def __init__(self, workers: WorkerPool | TorchrunDrafter) -> None:
        self.workers = workers
        self.vocab_size = workers.ready.vocab_size
        self.context_length = workers.ready.context_length
        self.tokens: list[int] = []
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def forward(self, ids: Tensor) -> Tensor:
        self._length += len(ids)
        return torch.from_numpy(self.workers.call("forward", ids.tolist()))

    def prefill(self, ids: Tensor) -> None:
        self.workers.call("prefill", ids.tolist())
        self._length += len(ids)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self._length or length == 0, f"rewind to {length} of {self._length} tokens"
        if self.workers.alive:  # else there is nothing to rewind, and whoever asks next is told
            self.workers.send("rewind", length)
        self._length = length

    def forget(self) -> None:
        """What the cache holds is the `RemoteDrafter`'s business from now on."""
        self._length, self.tokens = 0, []


class RemoteDrafter:
    """A `Drafter` whose work is done by `WorkerPool`; the main process sends it what the target has confirmed."""

    def __init__(
        self, workers: WorkerPool | TorchrunDrafter, config: DraftConfig, model: RemoteModel, traced: bool = False
    ) -> None:
        self.workers = workers
        self.concurrent = workers.concurrent
        self.config = config
        self.model = model
        workers.send("configure", config, traced)
        self._is_open = False
        self._sent = 0  # confirmed tokens that the workers know

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return self.model.context_length

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation without waiting: the drafter reads the prompt while the target does."""
        if self._is_open:
            return
        self.model.forget()
        self.workers.send("open", list(prompt), config)
        self._sent = len(prompt)
        self._is_open = True

    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        draft = self.workers.call("draft", self._unsent(confirmed), gamma, should_continue, lookahead)
        return draft if draft.probs is None else replace(draft, probs=torch.from_numpy(draft.probs))

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """The next message says what was confirmed."""

    def release(self, confirmed: list[int]) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self.workers.alive:
            with suppress(WorkerError):  # the target's cache is to be rewound too; whoever drafts next is told
                self.workers.send("release", self._unsent(confirmed))

    def _unsent(self, confirmed: list[int]) -> list[int]:
        unsent = confirmed[self._sent :]
        self._sent = len(confirmed)
        return unsent


def start_drafter(built: Built, compile: bool, say: Callable[[str], None]) -> CausalLM | WorkerPool | TorchrunDrafter:
    """The drafter of a pair, started where it is to run.

    On the ranks of torchrun but the first this does not return: they help until the first is done.
    """
    model: CausalLM | WorkerPool | TorchrunDrafter | LoadSpec = built.drafter
    where = built.labels["draft_device"]
    if isinstance(model, LoadSpec) and where == RANKS:
        model = TorchrunDrafter(built.channel, model, built.target.vocab_size)
    if built.channel and built.channel.ranks.rank > 0:
        built.channel.follow()
        raise SystemExit(0)
    if isinstance(model, LoadSpec):
        say(f"starting the drafter, {model.name} ({model.precision} on {where})")
        model = WorkerPool(model, built.draft_places, built.target.vocab_size, compile=compile)
    return model
