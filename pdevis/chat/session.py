"""One conversation with a pair of models: its memory, its settings, and the statistics of its answers.

A session knows neither terminal nor commands: it yields events, and the caller shows them. A turn that fails leaves no
trace in the memory; one that is stopped keeps the tokens confirmed until then.

    session = ChatSession(load_pair("smollm2-135m"), DecodeConfig())
    for event in session.answer("Why is the sky blue?"):
        if isinstance(event, TokenWritten):
            print(event.token.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pdevis.config import METHODS, DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats, Generation, TokenEvent
from pdevis.reasoning.reasoning_stream import Part, ReasoningStream, prompt_opening
from pdevis.reasoning.split_reasoning import SplitText, assistant_message
from pdevis.text import PromptTooLongError, read_thoughts

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


@dataclass
class Answer:
    """An answer of one decoder, which grows while it is written.

    Attributes:
        text: all that the model wrote, its thoughts included.
        thoughts: divides it.
        split: thoughts and answer, when all is written.
        thought_seconds: time of decoding the thoughts.
    """

    method: str
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stats: DecodeStats = field(default_factory=DecodeStats)
    sources: dict[str, int] = field(default_factory=lambda: {"draft": 0, "target": 0})  # tokens written by each
    interrupted: bool = False
    thoughts: ReasoningStream = field(default_factory=ReasoningStream)
    split: SplitText = field(default_factory=lambda: SplitText("", ""))
    thought_seconds: float = 0.0
    _counted_until: float = 0.0  # seconds of decoding that thoughts or answer have been given

    def add(self, token: TokenEvent) -> list[Part]:
        """Append a confirmed token; return what it adds to thoughts and answer."""
        self.ids.append(token.id)
        self.text += token.text
        self.sources[token.source] += 1
        counted, now = self.thoughts.tokens, self.stats.decode_seconds
        parts = self.thoughts.add(token.text)
        if self.thoughts.tokens > counted:
            self.thought_seconds += now - self._counted_until
        if self.thoughts.tokens > counted or not self.thoughts.holds_text:
            self._counted_until = now
        return parts

    def finish(self) -> list[Part]:
        """End the answer; return what was held back."""
        parts = self.thoughts.finish()
        self.split = self.thoughts.split
        return parts


@dataclass
class Turn:
    """A user's message with its answers, in the order of `METHODS`. `chat`: put into the chat template."""

    user: str
    answers: list[Answer]
    chat: bool

    @property
    def kept(self) -> Answer:
        """The answer that the conversation continues from."""
        return self.answers[0]


@dataclass(frozen=True)
class AnswerStarted:
    """A decoder begins an answer."""

    answer: Answer


@dataclass(frozen=True)
class TokenWritten:
    """A confirmed token has been added to the answer. `parts`: its text, divided; what may be a tag comes later."""

    answer: Answer
    token: TokenEvent
    parts: list[Part]


@dataclass(frozen=True)
class DrafterFailed:
    """The drafter's processes failed. The answer starts again, with the drafter in this process."""

    answer: Answer
    error: ConnectionError


@dataclass(frozen=True)
class AnswerFinished:
    """The answer is complete, or Ctrl-C has ended it. `parts`: the rest of its text."""

    answer: Answer
    parts: list[Part]


@dataclass(frozen=True)
class TurnFinished:
    """All decoders have answered. `greedy`: without sampling, so that their tokens can be compared."""

    answers: list[Answer]
    greedy: bool


ChatEvent = AnswerStarted | TokenWritten | DrafterFailed | AnswerFinished | TurnFinished


class ChatSession:
    """A conversation with a pair.

    Args:
        pair: the pair, as `load_pair` returns it.
        decode: settings of each answer; the caches are always reused for the shared prefix.
        chat: False continues each message as raw text, without memory.
        system: instructions before the conversation; None: the chat template's own, if it has any.
    """

    def __init__(
        self, pair: SpeculativePair, decode: DecodeConfig, chat: bool = True, system: str | None = None
    ) -> None:
        self.pair = pair
        self.decode = replace(decode, reuse_prefix=True)
        self.chat = chat
        self.system = system
        self.last_message: str | None = None  # the user's last one, answered or not
        self.methods: tuple[str, ...] = METHODS[:1]  # active decoders
        self.turns: list[Turn] = []
        self.history: list[list[Answer]] = []  # the answers of every turn, those before a reset included
        self.last_ids: list[int] | None = None  # the prompt of the last turn, with the memory before it

    @property
    def messages(self) -> list[dict[str, str]]:
        """The memory, as the chat template takes it. Raw continuations are not part of it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            if turn.chat:
                messages += [{"role": "user", "content": turn.user}, assistant_message(turn.kept.split)]
        return messages

    def encode(self, text: str) -> list[int]:
        """Return the prompt ids of a message, with the memory before it. Raises ValueError if it has none."""
        prompt = [*self.messages, {"role": "user", "content": text}] if self.chat else text
        return self.pair.encode(prompt, chat=self.chat)

    def answer(self, text: str) -> Iterator[ChatEvent]:
        """Let every active decoder answer a message, and remember the turn.

        Raises:
            ValueError: the message cannot be answered; the memory stays as it was.
        """
        ids = self.encode(text)
        self.last_message = text
        answers = []
        for method in self.methods:
            answer = yield from self.write(method, ids)
            answers.append(answer)
            if answer.interrupted:
                break
        self.last_ids = ids
        self.history.append(answers)
        if answers[0].text or not answers[0].interrupted:
            self.turns.append(Turn(text, answers, self.chat))
        yield TurnFinished(answers, self.decode.greedy)

    def write(self, method: str, ids: list[int]) -> Generator[ChatEvent, None, Answer]:
        """Let one decoder answer the prompt `ids`, without remembering it. Ctrl-C ends the answer early.

        If the drafter's processes fail, the drafter is loaded into this process, and the answer starts again.

        Raises:
            ValueError: the prompt does not fit into the context.
        """
        answer, failure = Answer(method, thoughts=ReasoningStream(prompt_opening(self.pair.tokenizer, ids))), None
        try:
            with self._advice_on_length():
                stream = self.pair.stream(ids, self.decode, method=method)
            answer.stats = stream.stats
            with closing(stream):
                yield AnswerStarted(answer)
                for token in stream:
                    yield TokenWritten(answer, token, answer.add(token))
        except KeyboardInterrupt:
            answer.interrupted = True
        except ConnectionError as error:
            failure = error
        if failure:
            yield DrafterFailed(answer, failure)
            self.pair.recover()
            self.decode = replace(self.decode, overlap=False)
            return (yield from self.write(method, ids))
        parts = answer.finish()
        try:
            yield AnswerFinished(answer, parts)
        except KeyboardInterrupt:  # while the end of the answer was shown
            answer.interrupted = True
        return answer

    def generate(self, text: str) -> tuple[Generation, ReasoningStream]:
        """Return a speculative answer to a message and its division, without remembering it. Errors as for `answer`."""
        ids, tokenizer = self.encode(text), self.pair.tokenizer
        with self._advice_on_length():
            made = self.pair.generate(ids, self.decode, method="speculative")
        return made, read_thoughts(made.ids, tokenizer, prompt_opening(tokenizer, ids))

    def retry(self) -> Iterator[ChatEvent]:
        """Answer the last message again, in place of its answer if it has one, which stays if no new one is written.

        Raises:
            ValueError: there is no message.
        """
        if self.last_message is None:
            raise ValueError("there is no message yet")
        former = []
        if self.turns and self.turns[-1].user == self.last_message:
            former = [self.turns.pop()]
        kept = len(self.turns)
        try:
            yield from self.answer(self.last_message)
        finally:
            if len(self.turns) == kept:
                self.turns += former

    def undo(self) -> Turn:
        """Forget the last turn; return it. Raises ValueError if there is none."""
        if not self.turns:
            raise ValueError("there is no turn to forget")
        self.last_message = None
        return self.turns.pop()

    def trim(self, turns: int) -> int:
        """Forget the oldest turns; return how many are left. Raises ValueError if there are fewer."""
        if not 1 <= turns <= len(self.turns):
            raise ValueError(f"{turns} must be at least 1 and at most {len(self.turns)}, the turns of the conversation")
        del self.turns[:turns]
        return len(self.turns)

    def remember(self, messages: list[dict[str, str]]) -> None:
        """Continue another conversation in place of this one: user and assistant in turn, maybe after a system message.

        Raises:
            ValueError: the messages are not of this form; the conversation stays as it was.
        """
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        talk = messages[1:] if system is not None else messages
        roles = [message["role"] for message in talk]
        if not talk or roles != ["user", "assistant"] * (len(talk) // 2):
            raise ValueError("its messages must be user and assistant in turn, after a system message or none")
        self.reset()
        self.system = system
        for user, reply in zip(talk[::2], talk[1::2]):
            split = SplitText(reply.get("reasoning_content", ""), reply["content"])
            self.turns.append(Turn(user["content"], [Answer(METHODS[0], text=split.answer, split=split)], chat=True))
        self.last_message = self.turns[-1].user

    def context_tokens(self) -> int:
        """Return the number of tokens of the conversation, as the next prompt will begin with it."""
        return len(self.pair.encode(self.messages)) if self.messages else 0

    def reset(self) -> None:
        """Forget the conversation; system message and the session's statistics stay."""
        self.turns.clear()
        self.last_ids = self.last_message = None
        self.pair.reset()

    def total(self, method: str, shared_with: str | None = None) -> DecodeStats | None:
        """Return the summed statistics of a decoder's answers; None if there are none.

        Args:
            shared_with: another decoder; only turns that it answered too are counted.
        """
        turns = [{answer.method: answer.stats for answer in answers} for answers in self.history]
        parts = [turn[method] for turn in turns if method in turn and (shared_with is None or shared_with in turn)]
        return DecodeStats.sum(parts) if parts else None

    def set_decode(self, **changes: object) -> None:
        """Change decoding settings. Raises ValueError, and changes nothing, if a value is not allowed."""
        self.decode = replace(self.decode, **changes)

    def set_draft(self, **changes: object) -> DraftConfig:
        """Change drafting settings. Raises ValueError, and changes nothing, if a value is not allowed."""
        self.pair.configure(replace(self.pair.draft, **changes))
        return self.pair.draft

    def toggle(self, method: str) -> None:
        """Turn a decoder on or off. Raises ValueError if none would be left."""
        if self.methods == (method,):
            others = " or ".join(f"/{other}" for other in METHODS if other != method)
            raise ValueError(f"/{method}: it is the only active decoder; turn on {others} first")
        self.methods = tuple(other for other in METHODS if (other in self.methods) != (other == method))

    @contextmanager
    def _advice_on_length(self) -> Iterator[None]:
        """Rephrase the error of a prompt that is too long: say what the user can do."""
        try:
            yield
        except PromptTooLongError as error:
            holds = f"and the models' context holds {error.context_length}"
            size = f"{error.tokens} tokens, {holds}"
            if self.chat and self.turns:
                system = [message for message in self.messages[:1] if message["role"] == "system"]
                alone = len(self.pair.encode([*system, {"role": "user", "content": self.last_message}]))
                if alone >= error.context_length:
                    raise ValueError(
                        f"this message is too long: {alone} tokens without the conversation before it, {holds}; give a "
                        "shorter one"
                    ) from None
                raise ValueError(
                    f"the conversation has become too long: with this message {size}. The message was dropped; "
                    "/trim N forgets its first N turns, /save FILE keeps it, /clear starts a new one"
                ) from None
            raise ValueError(f"the prompt is too long: {size}; give a shorter one") from None
