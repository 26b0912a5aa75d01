"""A drafter in a process of its own: what such a process does, from loading its share of the weights to its end.

The main process sends one small message a round; all ranks get it, run the same `Drafter` on it, and rank 0 answers.
Asked to draft ahead, the ranks go on when the answer is out: they guess the token that the target will add, and draft
behind it as if it had been confirmed. If the next message confirms just that, the draft is there; else it is dropped,
at the next sublayer, and the caches are rewound. What is drafted ahead depends on the guess only, never on what the
target is about to say, so that sampling stays lossless.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

from pdevis.drafting.drafter import Drafter
from pdevis.drafting.lanes import DeviceLanes
from pdevis.drafting.link import Alone, Board, Dropped, Link, ProcessGroup, SharedMemory, Signs
from pdevis.models.build import Plan, build_model
from pdevis.models.places import Place
from pdevis.models.share import Share
from pdevis.models.stack import CausalLM, DecoderStack
from pdevis.records import DecodeConfig, Draft, DraftConfig

SHARED = "shared"  # the transport between CPU cores; otherwise a backend of torch.distributed
WATCH_SECONDS = 1.0  # between two looks whether the main process is there


@dataclass(frozen=True)
class Seat:
    """Everything that one rank is told when it starts."""

    rank: int
    place: Place
    plan: Plan
    target_vocab: int
    board: Board
    transport: str
    rendezvous: str  # file through which the ranks of torch.distributed find each other
    timeout: float
    compile: bool


@dataclass(frozen=True)
class Ready:
    """What rank 0 says of its drafter when it is loaded."""

    vocab_size: int
    context_length: int


def run_rank(seat: Seat, mail: Connection) -> None:
    """The whole life of one rank. Ends when the main process closes its end of `mail`, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _watch(os.getppid())
    try:
        seat.place.settle()
        server = Server(seat, mail)
        mail.send(("ready", 0, Ready(server.model.vocab_size, server.model.context_length)))
        server.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the main process has closed its end
        pass
    except BaseException as error:  # whatever it is, the main process has to hear of it
        told = str(error).strip().splitlines() or [""]
        with suppress(OSError):
            mail.send(("error", 0, (type(error).__name__, told[0], seat.rank)))
    os._exit(0)  # NCCL and gloo may wait for their peers at exit


def _watch(parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


class Server:
    """One rank's model and drafter, and the messages that it obeys."""

    def __init__(self, seat: Seat, mail: Connection) -> None:
        self.seat = seat
        self.mail = mail
        self.inbox: list[tuple[str, int, tuple[Any, ...]]] = []
        self.signs = Signs(seat.board, seat.rank)
        self.link = self._connect()
        plan = seat.plan
        self.model: CausalLM = build_model(plan, Share(seat.rank, seat.board.size), seat.compile)
        vocab = min(plan.head_rows or self.model.vocab_size, self.model.vocab_size)
        self.lanes = DeviceLanes(self.model, self.link, vocab) if isinstance(self.model, DecoderStack) else None
        self.drafter = self._drafter(DraftConfig(mode="exact"))
        self.confirmed: list[int] = []
        self.config = DecodeConfig()
        self.ahead: _Ahead | None = None
        self.made_ahead: bool | None = None
        self.idle = 0.0
        self.operations: dict[str, Callable[..., Any]] = {
            "configure": self.configure,
            "start": self.start,
            "draft": self.draft,
            "finish": self.finish,
            "forward": self.forward,
            "prefill": self.prefill,
            "rewind": self.rewind,
        }

    def serve(self) -> None:
        while True:
            operation, number, arguments = self._next()
            value = self.operations[operation](*arguments)
            if self.link.rank == 0:
                self.mail.send(("done", number, value))
            if self.ahead:
                self._look_ahead(self.ahead)

    # ---- what the main process asks for ----

    def configure(self, draft: DraftConfig) -> None:
        self.drafter = self._drafter(draft)

    def start(self, prompt: list[int], config: DecodeConfig) -> None:
        self.confirmed, self.config, self.ahead, self.idle = list(prompt), config, None, 0.0
        self.drafter.start(prompt, config)

    def draft(self, added: list[int], gamma: int, goes_on: Callable[[float], bool] | None, room: int) -> Draft:
        """The next draft. `room`: draft tokens that fit into this and the next round; 0: do not draft ahead."""
        begin = time.perf_counter()
        self.confirmed += added
        ahead, self.ahead, self.made_ahead = self.ahead, None, None
        hit = ahead is not None and ahead.draft is not None and ahead.confirmed == self.confirmed
        if hit:
            draft = _cut(ahead.draft, gamma)
        else:
            self.drafter.settle(self.confirmed)
            draft = self.drafter.draft(self.confirmed, gamma, deepcopy(goes_on))  # a rule counts its tokens
        seconds = ahead.seconds if hit else time.perf_counter() - begin
        idle, self.idle = self.idle, 0.0
        left = room - len(draft.ids) - 1
        if left > 0 and draft.ids[-1] not in (self.config.eos_ids or ()):
            self.ahead = _Ahead([*self.confirmed, *draft.ids], min(gamma, left), goes_on)
        probs = None if draft.probs is None else draft.probs.cpu().numpy()  # a tensor would travel as an open file
        return replace(draft, probs=probs, seconds=seconds, idle_seconds=idle, ahead=hit if ahead else None)

    def finish(self, added: list[int]) -> None:
        self.confirmed += added
        self.ahead = None
        self.drafter.finish(self.confirmed)

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> Any:
        """Logits [T, V] as a numpy array."""
        self.model.tokens = []
        tensor = torch.tensor(ids, device=self.model.device)
        if self.lanes:  # one row of logits at a time: that is what the board has room for
            logits = torch.cat([self.lanes.logits(row) for row in self.lanes.run_layers(tensor).split(1)])
        else:
            logits = self.model.forward(tensor)
        return (logits.float() if logits.dtype == torch.bfloat16 else logits).cpu().numpy()

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        self.model.tokens = []
        self.drafter.engine.read(torch.tensor(ids, device=self.model.device))

    def rewind(self, length: int) -> None:
        self.model.tokens = []
        self.model.rewind(length)

    # ---- while the target verifies ----

    def _look_ahead(self, ahead: _Ahead) -> None:
        self.link.dropping = True
        self.link.unwanted = self._refuted if self.link.rank == 0 else None
        try:
            ahead.confirmed.append(self.drafter.guess(ahead.confirmed))
            if ahead.confirmed[-1] not in (self.config.eos_ids or ()):
                begin = time.perf_counter()
                ahead.draft = self.drafter.draft(ahead.confirmed, ahead.gamma, ahead.goes_on)
                ahead.seconds = time.perf_counter() - begin
        except Dropped:
            pass
        finally:
            self.link.dropping, self.link.unwanted = False, None

    def _refuted(self) -> bool:
        """Whether the main process has said something else than what is being drafted for."""
        if not self.inbox and self.signs.mail_waits():
            self.inbox.append(self._receive())
        if not self.inbox or self.ahead is None:
            return False
        operation, _, arguments = self.inbox[0]
        confirms = operation == "draft" and [*self.confirmed, *arguments[0]] == self.ahead.confirmed
        return not confirms

    # ---- how messages come ----

    def _next(self) -> tuple[str, int, tuple[Any, ...]]:
        if self.inbox:
            return self.inbox.pop()
        begin = time.perf_counter()
        message = self._receive()
        self.idle += time.perf_counter() - begin
        return message

    def _receive(self) -> tuple[str, int, tuple[Any, ...]]:
        message = self.mail.recv()
        self.signs.mail_read()
        return message

    def _connect(self) -> Link:
        seat, size = self.seat, self.seat.board.size
        if size == 1:
            return Alone(self.signs.beat)
        if seat.transport == SHARED:
            return SharedMemory(seat.board, seat.rank, seat.timeout, self.signs.beat)
        torch.distributed.init_process_group(
            seat.transport,
            init_method=f"file://{seat.rendezvous}",
            rank=seat.rank,
            world_size=size,
            timeout=timedelta(seconds=seat.timeout),
        )
        return ProcessGroup(seat.rank, size, self.signs.beat)

    def _drafter(self, draft: DraftConfig) -> Drafter:
        self.model.rewind(0)
        self.model.tokens = []
        drafter = Drafter(self.model, draft, self.seat.target_vocab, self.lanes)
        if self.lanes is None:  # a whole forward is what can be dropped
            drafter.engine.agree = lambda ids: self.link.share([ids], [0], ids.shape, ids)[0]
        return drafter


@dataclass
class _Ahead:
    """A draft behind a guess; `confirmed` is what the target would have to confirm."""

    confirmed: list[int]
    gamma: int
    goes_on: Callable[[float], bool] | None
    draft: Draft | None = None
    seconds: float = 0.0


def _cut(draft: Draft, gamma: int) -> Draft:
    """The first γ tokens; how many does not depend on what they are."""
    if len(draft.ids) <= gamma:
        return draft
    probs = None if draft.probs is None else draft.probs[:gamma]
    return replace(draft, ids=draft.ids[:gamma], probs=probs, confidences=draft.confidences[:gamma])
