"""A chat whose output can be read by tests."""

from __future__ import annotations

from io import StringIO

from helpers.fake_pair import FakePair
from pdevis.chat.app import handle
from pdevis.chat.commands import Chat
from pdevis.chat.session import ChatSession
from pdevis.config import DecodeConfig
from pdevis.util.console import make_console


class Screen:
    """A chat with a scripted pair, and what it prints."""

    def __init__(self, pair: FakePair | None = None, chat: bool = True, **decode: object) -> None:
        self.pair = pair or FakePair()
        self.file = StringIO()
        self.session = ChatSession(self.pair, DecodeConfig(**decode), chat)
        self.chat = Chat(self.session, make_console(self.file))

    def enter(self, *lines: str) -> str:
        """Enter lines and return what they print. The chat must continue after each of them."""
        self.file.seek(0)
        self.file.truncate()
        for line in lines:
            assert handle(self.chat, line)
        return self.file.getvalue()
