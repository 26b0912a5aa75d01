"""The user's lines: typed at a terminal (prompt_toolkit: history, completion, pasting of several lines), or piped."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pdevis.util.files import cache_root, decode_text

if TYPE_CHECKING:
    from prompt_toolkit.history import History


def line_reader(file: TextIO) -> Callable[[], str]:
    """Return a function that reads the next line of a file or pipe.

    The function raises EOFError at the end, and NotTextError for a line that is not UTF-8.
    """
    lines: deque[str] = deque()
    position = 0  # of the next byte
    stream = getattr(file, "buffer", None)  # the locale's encoding does not matter

    def read() -> str:
        nonlocal position
        if not lines:
            line = stream.readline() if stream else file.readline().encode("utf-8", "surrogatepass")
            if not line:
                raise EOFError
            lines.extend(decode_text(line, "standard input", position).removesuffix("\n").split("\n"))
            position += len(line)
        return lines.popleft()

    return read


def complete_line(text: str, commands: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the words that can continue a line, in place of its last word: commands, or values of its command."""
    if not text.startswith("/") or "\n" in text:
        return []
    name, space, value = text[1:].partition(" ")
    if not space:
        return [f"/{other}" for other in commands if other.startswith(name)]
    return [other for other in values.get(name, ()) if other.startswith(value)]


def terminal_reader(commands: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> Callable[[], str]:
    """Return a function that reads a message typed at the terminal.

    The function raises EOFError on Ctrl-D and KeyboardInterrupt on Ctrl-C.

    Args:
        commands: help text of each command, by name; for completion.
        values: those that a command takes, by its name.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    class CommandCompleter(Completer):
        def get_completions(self, document: Document, complete_event: object) -> Iterator[Completion]:
            text = document.text_before_cursor
            typed = text.partition(" ")[2] if " " in text else text
            for word in complete_line(text, commands, values):
                yield Completion(word, -len(typed), display_meta=commands.get(word.removeprefix("/"), ""))

    prompt: PromptSession[str] = PromptSession(
        FormattedText([("bold fg:ansicyan", "> ")]),
        multiline=True,  # so that pasted lines arrive as one message; Enter sends all the same
        prompt_continuation="  ",
        key_bindings=keys,
        history=make_history(history_path()),
        completer=CommandCompleter(),
        reserve_space_for_menu=6,
    )
    return prompt.prompt


def make_history(path: Path | None) -> History:
    """Return the history of the user's lines in a file, or in memory. A file that cannot be used is ignored."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class TextHistory(FileHistory):
        def load_history_strings(self) -> list[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string.encode("utf-8", "replace").decode())  # typed bytes may not be UTF-8

    return TextHistory(str(path)) if path else InMemoryHistory()


def history_path() -> Path | None:
    """Return the file with the user's earlier lines, in the cache folder; None if it cannot be written."""
    try:
        path = cache_root() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path if os.access(path, os.R_OK | os.W_OK) else None
    except OSError:
        return None
