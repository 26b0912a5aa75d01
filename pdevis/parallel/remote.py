"""The main process's view of a drafter in other processes: as a `CausalLM` and as a `DraftSource`.

Shapes: T = tokens of this call, V = vocabulary, G = draft tokens of a round.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pdevis.config import RANKS, DecodeConfig, DraftConfig
from pdevis.devices import DeviceSlot
from pdevis.generation import Draft
from pdevis.loading.model_builder import LoadSpec
from pdevis.loading.pair_builder import BuiltPair
from pdevis.loading.weights.families import unsupported_reason
from pdevis.models.causal_lm import CausalLM
from pdevis.models.static.start import uses_graphs
from pdevis.parallel.torchrun.torchrun_drafter import TorchrunDrafter
from pdevis.parallel.worker_pool import WorkerError, WorkerPool
from pdevis.parallel.worker_process import WorkerInfo
from pdevis.util.validation import first_line


@runtime_checkable
class DrafterBackend(Protocol):
    """A drafter in other processes, which run the operations of `DraftService`: `WorkerPool`, `TorchrunDrafter`."""

    concurrent: bool  # True if the drafter works while the main process does; False if `send` waits for the operation
    devices: int  # over which the layers are distributed
    splits_mlps: bool  # True if every device has some rows of each MLP
    has_sublayer_access: bool  # False for a model that runs through transformers
    load_spec: LoadSpec
    info: WorkerInfo

    @property
    def alive(self) -> bool:
        """True if requests can be sent."""
        ...

    def send(self, operation: str, *arguments: Any) -> None:
        """Request an operation. An error of the drafter is raised here, or by a later request."""
        ...

    def call(self, operation: str, *arguments: Any) -> Any:
        """Request an operation and return its result."""
        ...

    def respawn_on(self, device_slots: Sequence[DeviceSlot]) -> DrafterBackend:
        """Start a copy of this drafter on other devices. Raises ValueError if that is not possible."""
        ...

    def close(self) -> None:
        """End the drafter; does nothing if it has ended."""
        ...


class RemoteModel:
    """A remote drafter as a `CausalLM`, for decoding with the drafter alone. Its logits arrive on the CPU."""

    device = torch.device("cpu")

    def __init__(self, backend: DrafterBackend) -> None:
        self.backend = backend
        self.vocab_size = backend.info.vocab_size
        self.context_length = backend.info.context_length
        self.tokens: list[int] = []
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def forward(self, ids: Tensor) -> Tensor:
        self._length += len(ids)
        return torch.from_numpy(self.backend.call("forward", ids.tolist()))

    def prefill(self, ids: Tensor) -> None:
        self.backend.call("prefill", ids.tolist())
        self._length += len(ids)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self._length or length == 0, f"rewind to {length} of {self._length} tokens"
        if self.backend.alive:  # else there is no cache to rewind, and the next request raises the error
            self.backend.send("rewind", length)
        self._length = length

    def forget(self) -> None:
        """Leave the cache to a `RemoteDrafter`: this object does not know its content any more."""
        self._length, self.tokens = 0, []


def _check_sendable(processors: Sequence[Any]) -> None:
    """Raise ValueError if pickle cannot send logits processors: half a request would leave the drafter unusable."""
    try:
        pickle.dumps(tuple(processors))
    except Exception as error:  # any, of the user's own classes
        raise ValueError(
            f"processors: a drafter in other processes needs functions that can be pickled ({first_line(error)})"
        ) from error


class RemoteDrafter:
    """A `DraftSource` (decoding/draft_source.py) whose work is done by a `DrafterBackend`.

    The main process sends only those confirmed tokens that the backend does not have yet.
    """

    def __init__(self, model: RemoteModel, config: DraftConfig, *, traced: bool = False) -> None:
        self.model = model
        self.backend = model.backend
        self.concurrent = model.backend.concurrent
        self.config = config
        self.backend.send("configure", config, traced)
        self._is_open = False
        self._sent_length = 0  # number of confirmed tokens that the backend has

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return self.model.context_length

    def open(self, prompt: list[int], config: DecodeConfig) -> None:
        """Begin a generation without waiting: a concurrent drafter reads the prompt while the target does.

        Raises:
            ValueError: the settings have processors that cannot be sent.
        """
        if self._is_open:
            return
        _check_sendable(config.processors)
        self.model.forget()
        self.backend.send("open", list(prompt), config)
        self._sent_length = len(prompt)
        self._is_open = True

    def draft(
        self,
        confirmed: list[int],
        gamma: int,
        should_continue: Callable[[float], bool] | None = None,
        lookahead: int = 0,
    ) -> Draft:
        draft = self.backend.call("draft", self._unsent(confirmed), gamma, should_continue, lookahead)
        return draft if draft.probs is None else replace(draft, probs=torch.from_numpy(draft.probs))

    def rewind_to_confirmed(self, confirmed: list[int]) -> None:
        """Do nothing: the next request contains the confirmed tokens."""

    def release(self, confirmed: list[int]) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self.backend.alive:
            with suppress(WorkerError):  # the target's cache must be rewound too; the next draft raises the error
                self.backend.send("release", self._unsent(confirmed))

    def _unsent(self, confirmed: list[int]) -> list[int]:
        """Return the confirmed tokens that the backend does not have yet; they count as sent from now on."""
        unsent = confirmed[self._sent_length :]
        self._sent_length = len(confirmed)
        return unsent


def start_drafter(built: BuiltPair, graphs: str, on_progress: Callable[[str], None]) -> CausalLM | DrafterBackend:
    """Return the drafter of a pair, started in other processes if `build_pair` has not loaded it here.

    Under torchrun only for rank 0; the other ranks call `follow_main_rank`.
    """
    drafter = built.drafter
    if not isinstance(drafter, LoadSpec):
        return drafter
    draft_device = built.labels["draft_device"]
    if draft_device == RANKS:
        return TorchrunDrafter(built.channel, drafter, target_vocab=built.target.vocab_size)
    supported = not unsupported_reason(drafter.config)
    static_shapes = supported and uses_graphs(graphs, built.draft_slots[0].device)
    on_progress(f"starting the drafter, {drafter.name} ({drafter.precision} on {draft_device})")
    return WorkerPool(drafter, built.draft_slots, target_vocab=built.target.vocab_size, static_shapes=static_shapes)


def follow_main_rank(built: BuiltPair) -> None:
    """Run this rank's part of the pair for rank 0 of torchrun, until rank 0 closes or ends.

    Raises:
        RankError: rank 0 is gone or silent, or an operation fails here.
    """
    if isinstance(built.drafter, LoadSpec) and built.labels["draft_device"] == RANKS:
        TorchrunDrafter(built.channel, built.drafter, target_vocab=built.target.vocab_size)
    built.channel.follow()
