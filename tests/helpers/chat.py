"""A scripted pair with the interface of `SpeculativePair`, and a chat session whose output tests can read.

Output goes to a file as in a pipe, or to a terminal, whose rows tests can read with those that have left the screen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from pdevis.chat.app import handle
from pdevis.chat.commands import Chat
from pdevis.chat.screen.answer_display import DisplaySettings
from pdevis.chat.session import ChatSession
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.generation import DecodeStats, Generation, TokenEvent
from pdevis.text import PromptTooLongError
from pdevis.tune.free_cores import ThreadChoice
from pdevis.util.console import make_console

SPEED = {"target": 10.0, "speculative": 20.0, "drafter": 40.0}  # tokens per decode second


class FakeStream:
    """Replay a reply; in speculative decoding every third token is the target's. Raises `error` at token `stop_at`."""

    def __init__(self, pair: FakePair, ids: list[int], config: DecodeConfig, method: str) -> None:
        self.pair, self.method = pair, method
        self.ids: list[int] = []
        self.text = ""
        self.closed = False
        self.reply = pair.replies.pop(0) if pair.replies else "hello"
        self.limit = min(config.max_new_tokens, len(self.reply))
        self.stats = DecodeStats(method=method, mode=pair.mode, prompt_tokens=len(ids), prefill_seconds=1.0)
        self.stats.total_seconds = 1.0

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> TokenEvent:
        n = len(self.ids)
        if n == self.pair.stop_at:
            raise self.pair.error
        if n == self.limit:
            self.stats.stop_reason = "eos" if self.limit == len(self.reply) else "length"
            raise StopIteration
        letter = self.reply[n]
        target = self.method == "target" or (self.method == "speculative" and n % 3 == 2)
        self.ids.append(ord(letter))
        self.text += letter
        self.stats.new_tokens += 1
        self.stats.total_seconds += 1 / SPEED[self.method]
        if self.method == "speculative" and n % 3 == 0:
            self.stats.rounds += 1
            self.stats.drafted += 4
            self.stats.draft_steps += 4
            self.stats.accept_lengths.append(0)
            self.stats.draft_seconds += 0.05
            self.stats.skipped += 40
        if self.method == "speculative":
            self.stats.accept_lengths[-1] += 1
            self.stats.accepted += not target
        return TokenEvent(ord(letter), letter, "target" if target else "draft", n // 3)

    def close(self) -> None:
        self.closed = True


class FakeTokenizer:
    """Ids are the code points of the text."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(map(chr, ids))


@dataclass
class FakePair:
    """A pair that gives `replies` in order, then "hello". `calls` holds (method, ids, config) of every generation."""

    replies: list[str] = field(default_factory=list)
    draft: DraftConfig = field(default_factory=DraftConfig)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    context_length: int = 1000
    stop_at: int | None = None
    error: BaseException = field(default_factory=KeyboardInterrupt)
    template: bool = True
    defaults: DecodeConfig = field(default_factory=DecodeConfig)
    calls: list[tuple[str, list[int], DecodeConfig]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    resets: int = 0
    recovered: int = 0

    @property
    def mode(self) -> str:
        return "parallel" if self.draft.mode == "auto" else self.draft.mode

    def configure(self, draft: DraftConfig) -> None:
        self.draft = draft

    def describe(self) -> dict[str, Any]:
        return {
            "target": "big",
            "drafter": "small",
            "target_device": "cpu",
            "draft_device": "cpu",
            "target_precision": "float32",
            "draft_precision": "int8",
            "mode": self.mode,
            "check": self.draft.check,
            "threshold": self.draft.threshold,
            "window": self.draft.window,
        }

    def encode(self, prompt: Any, chat: bool = True) -> list[int]:
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return prompt
        if chat and not self.template:
            raise ValueError("the model has no chat template; use --no-chat")
        self.prompts.append(prompt)
        text = prompt if isinstance(prompt, str) else "".join(f"{m['role'][0]}:{m['content']}|" for m in prompt)
        return [ord(letter) for letter in text]

    def stream(self, prompt: Any, config: DecodeConfig | None = None, method: str = "speculative") -> FakeStream:
        config = config or DecodeConfig()
        ids = self.encode(prompt)
        if len(ids) >= self.context_length:
            raise PromptTooLongError(len(ids), self.context_length)
        self.calls.append((method, ids, config))
        stream = FakeStream(self, ids, config, method)
        self.streams.append(stream)
        return stream

    def generate(self, prompt: Any, config: DecodeConfig | None = None, method: str = "speculative") -> Generation:
        stream = self.stream(prompt, config, method)
        for _ in stream:
            pass
        return Generation(stream.ids, stream.text, stream.stats)

    def reset(self) -> None:
        self.resets += 1

    def recover(self) -> None:
        self.recovered += 1
        self.stop_at = None


class Terminal(StringIO):
    """A terminal of some columns and rows: letters, line ends, and the codes by which rows are erased.

    Attributes:
        rows: all rows, those that have left the screen included.
    """

    def __init__(self, columns: int, height: int) -> None:
        super().__init__()
        self.columns, self.height = columns, height
        self.truncate()

    def write(self, text: str) -> int:
        for code, letter in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|([\s\S])", text):
            row, column = self.cursor
            if code.endswith("A"):
                self.cursor[0] = max(row - int(code[:-1]), len(self.rows) - self.height, 0)
            elif code == "2K":
                self.rows[row] = ""
            elif letter == "\r":
                self.cursor[1] = 0
            elif letter == "\n":
                self._begin_row()
            elif letter:
                if column + cell_len(letter) > self.columns:
                    self._begin_row()
                    row, column = self.cursor
                assert cell_len(self.rows[row]) == column, "only the end of a row is written"
                self.rows[row] += letter
                self.cursor[1] += cell_len(letter)
            else:
                assert code.endswith(("m", "l", "h")), f"unknown code {code!r}"
        return len(text)

    def truncate(self, size: int | None = None) -> int:
        """Clear the screen."""
        self.rows, self.cursor = [""], [0, 0]  # row and column
        return 0

    def _begin_row(self) -> None:
        self.cursor = [self.cursor[0] + 1, 0]
        if self.cursor[0] == len(self.rows):
            self.rows.append("")

    @property
    def text(self) -> str:
        """All rows up to the cursor's, without blanks at their ends."""
        last = self.cursor[0] + 1
        assert not any(self.rows[last:]), "nothing is below the cursor"
        return "\n".join(row.rstrip() for row in self.rows[:last])

    def console(self) -> Console:
        """A console that writes here."""
        size = {"width": self.columns, "height": self.height}
        return Console(file=self, force_terminal=True, color_system=None, highlight=False, _environ={}, **size)


class Screen:
    """A chat with a scripted pair, and what it prints.

    Args:
        terminal: shows the chat; None: it prints to a file.
    """

    def __init__(
        self,
        pair: FakePair | None = None,
        chat: bool = True,
        terminal: Terminal | None = None,
        display: DisplaySettings | None = None,
        **decode: object,
    ) -> None:
        self.pair = pair or FakePair()
        self.file = terminal or StringIO()
        self.session = ChatSession(self.pair, DecodeConfig(**decode), chat)
        console = terminal.console() if terminal else make_console(self.file)
        self.chat = Chat(self.session, console, ThreadChoice(enabled=False), display or DisplaySettings())

    def enter(self, *lines: str) -> str:
        """Enter lines and return what they print. The chat must continue after each of them."""
        self.file.seek(0)
        self.file.truncate()
        for line in lines:
            assert handle(self.chat, line)
        return self.file.text if isinstance(self.file, Terminal) else self.file.getvalue()
