"""One conversation with a pair of models: its memory, its settings, and what its answers cost.

A session knows neither terminal nor commands. It asks the pair for tokens, shows them as they are confirmed, and keeps
the turns. A turn that fails leaves no trace in the memory; one that is stopped keeps what was confirmed until then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rich.console import Console

from pdevis.chat import render
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats, TokenEvent, sum_stats

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

METHODS = ("speculative", "target", "drafter")  # in the order in which they answer, and in which memory prefers them


@dataclass
class Answer:
    """What one decoder wrote."""

    method: str
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stats: DecodeStats = field(default_factory=DecodeStats)
    sources: dict[str, int] = field(default_factory=lambda: {"draft": 0, "target": 0})  # tokens written by each
    interrupted: bool = False

    def add(self, event: TokenEvent) -> None:
        self.ids.append(event.id)
        self.text += event.text
        self.sources[event.source] += 1


@dataclass
class Turn:
    """A user's text with its answers, in the order of `METHODS`. `chat`: through the chat template."""

    user: str
    answers: list[Answer]
    chat: bool

    @property
    def kept(self) -> Answer:
        """The answer that the conversation goes on from."""
        return self.answers[0]


class ChatSession:
    """A conversation. `console` shows it; `chat=False` continues each line as raw text, without memory.

    Args:
        pair: what `load_pair` returned.
        decode: the settings of each answer (prefixes are reused whatever it says).
    """

    def __init__(self, pair: SpeculativePair, console: Console, decode: DecodeConfig, chat: bool = True) -> None:
        self.pair = pair
        self.console = console
        self.decode = replace(decode, reuse_prefix=True)
        self.chat = chat
        self.methods: tuple[str, ...] = METHODS[:1]
        self.turns: list[Turn] = []
        self.history: list[list[Answer]] = []  # the answers of every turn, forgotten ones included
        self.last_ids: list[int] | None = None  # the prompt of the last turn, with the memory before it

    @property
    def messages(self) -> list[dict[str, str]]:
        """The memory, as the chat template takes it. Raw continuations are no part of it."""
        roles = []
        for turn in self.turns:
            if turn.chat:
                roles += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.kept.text}]
        return roles

    def encode(self, text: str) -> list[int]:
        """The prompt that `text` makes with the memory so far.

        Raises:
            ValueError: it does not fit the model's context; the message says what to do.
        """
        prompt = [*self.messages, {"role": "user", "content": text}] if self.chat else text
        ids = self.pair.encode(prompt, chat=self.chat)
        if len(ids) >= self.pair.context_length:
            size = f"{len(ids)} tokens, and the models' context holds {self.pair.context_length}"
            if self.chat and self.turns:
                raise ValueError(
                    f"the conversation has become too long: with this message {size}. The message was dropped; "
                    "/save FILE keeps the conversation, /reset starts a new one"
                )
            raise ValueError(f"the prompt is too long: {size}; give a shorter one")
        return ids

    def answer(self, text: str) -> list[Answer]:
        """Let every decoder that is on answer `text`; show the answers and what they cost.

        Raises:
            ValueError: the prompt cannot be answered; the memory is as before.
        """
        ids = self.encode(text)
        answers = []
        for method in self.methods:
            if len(self.methods) > 1:
                render.heading(self.console, method)
            answer = self.write(method, ids)
            answers.append(answer)
            render.line(self.console, render.summary(answer), "dim")
            if answer.interrupted:
                break
        if len(answers) > 1:
            for comparison in render.comparison(answers, self.decode.greedy):
                render.line(self.console, comparison, "dim")
        self.last_ids = ids
        self.history.append(answers)
        if answers[0].text or not answers[0].interrupted:
            self.turns.append(Turn(text, answers, self.chat))
        return answers

    def write(self, method: str, ids: list[int]) -> Answer:
        """Show and return one decoder's answer to the prompt `ids`; Ctrl-C ends it early. The memory is not touched.

        Where the drafter's own processes fail, the drafter is loaded into this one, and the answer begins again.
        """
        answer, failed = Answer(method), None
        mixed = method == "speculative"
        try:
            stream = self.pair.stream(ids, self.decode, method=method)
            answer.stats = stream.stats
            try:
                for event in stream:
                    answer.add(event)
                    render.token(self.console, event, mixed)
            finally:
                stream.close()
                answer.stats = stream.stats
        except KeyboardInterrupt:
            answer.interrupted = True
        except ConnectionError as error:
            failed = error
        finally:
            if answer.ids:
                render.end_of_answer(self.console)
        if failed:
            render.error(self.console, failed)
            render.line(self.console, "loading the drafter into this process; then once more", "dim")
            self.pair.recover()
            self.decode = replace(self.decode, overlap=False)
            return self.write(method, ids)
        return answer

    def reset(self) -> None:
        """Forget the conversation; the session's totals stay."""
        self.turns.clear()
        self.last_ids = None
        self.pair.reset()

    def total(self, method: str, beside: str | None = None) -> DecodeStats | None:
        """A decoder's answers of this session added up, only those of turns that `beside` answered too; None: none."""
        turns = [{answer.method: answer.stats for answer in answers} for answers in self.history]
        parts = [turn[method] for turn in turns if method in turn and (beside is None or beside in turn)]
        return sum_stats(parts) if parts else None

    def set_decode(self, **changes: object) -> None:
        """Change decoding settings. Raises ValueError, changing nothing, where a value is not allowed."""
        self.decode = replace(self.decode, **changes)

    def set_draft(self, **changes: object) -> DraftConfig:
        """Change drafting settings. Raises ValueError, changing nothing, where a value is not allowed."""
        self.pair.configure(replace(self.pair.draft, **changes))
        return self.pair.draft

    def toggle(self, method: str) -> None:
        """Turn a decoder on or off. Raises ValueError where none would be left."""
        if self.methods == (method,):
            others = " or ".join(f"/{other}" for other in METHODS if other != method)
            raise ValueError(f"/{method}: it is the only decoder that is on; turn on {others} first")
        self.methods = tuple(other for other in METHODS if (other in self.methods) != (other == method))
