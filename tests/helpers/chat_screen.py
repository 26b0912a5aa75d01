"""A chat session whose output can be read by tests."""

from __future__ import annotations

from io import StringIO

from helpers.fake_pair import FakePair
from pdevis.chat.app import handle, make_console
from pdevis.chat.session import ChatSession
from pdevis.config import DecodeConfig


class Screen:
    """A session whose output can be read."""

    def __init__(self, pair: FakePair | None = None, chat: bool = True, **decode: object) -> None:
        self.pair = pair or FakePair()
        self.file = StringIO()
        self.session = ChatSession(self.pair, make_console(self.file), DecodeConfig(**decode), chat)

    def say(self, *lines: str) -> str:
        """What the lines print; the session must go on after them."""
        self.file.seek(0)
        self.file.truncate()
        for line in lines:
            assert handle(self.session, line)
        return self.file.getvalue()
