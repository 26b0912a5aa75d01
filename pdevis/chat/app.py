"""From flags to a running chat: loading with progress, one-shot answers, and the loop over the user's lines.

On a terminal, lines come from prompt_toolkit (history, completion, pasting of several lines); otherwise from stdin, one
a line, and the exit code at its end is 0. Answers and tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape

from pdevis.chat import render
from pdevis.chat.commands import COMMANDS, LeaveChat, dispatch, settings
from pdevis.chat.session import ChatSession
from pdevis.cli import Parser, decode_config, is_main_rank, pair_arguments
from pdevis.util.argtypes import nearest
from pdevis.util.files import cache_root

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

MANAGER = {"start": "talk to the models", "sweep": "measure several gammas: sweep 2 4 6", "exit": "leave"}


def add_chat_flags(parser: Parser) -> None:
    """The flags of appInference.py that no other script has."""
    group = parser.add_argument_group("chat")
    once = group.add_mutually_exclusive_group()
    once.add_argument("--prompt", metavar="TEXT", help="answer once and leave; - reads the text from stdin")
    once.add_argument("--prompt_file", metavar="FILE", help="as --prompt, with the text of a file")
    once.add_argument("--manager", action="store_true", help="before the chat, ask: start, sweep or exit")
    group.add_argument("--json", action="store_true", help="with --prompt: one JSON object {text, ids, stats, config}")
    group.add_argument(
        "--no-chat", dest="chat", action="store_false", help="no chat template: the text is continued as it stands"
    )


def run_chat(args: argparse.Namespace, load_pair: Callable[..., SpeculativePair]) -> int:
    """Answer once, or chat until the user leaves; returns the exit code.

    Raises:
        ValueError: a user's mistake, found before the models are loaded where possible.
    """
    wanted = pair_arguments(args)
    if not is_main_rank(args):
        load_pair(**wanted)
        return 0
    prompt = _one_shot_prompt(args)
    decode = decode_config(args)
    session = ChatSession(_load(load_pair, wanted), make_console(sys.stdout), decode, args.chat)
    if prompt is not None:
        return _answer_once(session, prompt, args.json)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    render.line(session.console, render.banner(session.pair.describe()), "dim")
    read = terminal_reader() if interactive else line_reader(sys.stdin)
    if not args.manager or manage(session, read):
        if interactive:
            render.line(session.console, "/help lists the commands, Ctrl-D leaves", "dim")
        talk(session, read, interactive)
    return 0


def make_console(file: TextIO) -> Console:
    """A console that takes text literally."""
    return Console(file=file, markup=False, highlight=False, emoji=False)


def handle(session: ChatSession, text: str) -> bool:
    """Treat one line of the user's, a command or a message; False: leave. Mistakes are shown, and nothing is lost."""
    text = text.strip()
    try:
        if text.startswith("/") and not text.startswith("//"):
            dispatch(session, text)
        elif text:
            session.answer(text[1:] if text.startswith("//") else text)
    except LeaveChat:
        return False
    except (ValueError, RuntimeError) as error:
        render.error(session.console, error)
    return True


def talk(session: ChatSession, read: Callable[[], str], interactive: bool = False) -> None:
    """The chat: one line after another, until /quit or the end of the input."""
    while True:
        try:
            if not handle(session, read()):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise


def manage(session: ChatSession, read: Callable[[], str]) -> bool:
    """The manager prompt before the chat; True: start the chat."""
    choices = " · ".join(f"{name} ({text})" for name, text in MANAGER.items())
    render.line(session.console, choices)
    while True:
        try:
            name, _, argument = read().strip().removeprefix("/").partition(" ")
        except EOFError:
            return False
        except KeyboardInterrupt:
            continue
        if name in ("start", "exit") and not argument:
            return name == "start"
        if name == "sweep":
            handle(session, f"/sweep {argument}")
        elif name:
            match = nearest(name, MANAGER)
            render.error(
                session.console, f"{name!r} is none of the choices; " + (f"did you mean {match}?" if match else choices)
            )


def line_reader(file: TextIO) -> Callable[[], str]:
    """Lines of a file or pipe; raises EOFError at its end."""

    def read() -> str:
        line = file.readline()
        if not line:
            raise EOFError
        return line

    return read


def terminal_reader() -> Callable[[], str]:
    """Lines typed at a terminal. Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    names = {f"/{name}": command.help for name, command in COMMANDS.items()}
    path = history_path()
    prompt: PromptSession[str] = PromptSession(
        FormattedText([("bold fg:ansicyan", "> ")]),
        # several lines, so that what is pasted arrives whole; Enter still sends
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        history=FileHistory(str(path)) if path else InMemoryHistory(),
        completer=WordCompleter(list(names), meta_dict=names, sentence=True),
        reserve_space_for_menu=6,
    )
    return prompt.prompt


def history_path() -> Path | None:
    """The file with the user's earlier lines, in the cache folder; None where that cannot be written."""
    path = cache_root() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path if os.access(path, os.R_OK | os.W_OK) else None
    except OSError:
        return None


def _load(load_pair: Callable[..., SpeculativePair], wanted: dict[str, object]) -> SpeculativePair:
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return load_pair(**wanted, on_progress=lambda text: print(text, file=sys.stderr, flush=True))
    with console.status("loading the models") as status:
        return load_pair(**wanted, on_progress=lambda text: status.update(escape(text)))


def _one_shot_prompt(args: argparse.Namespace) -> str | None:
    """The text to answer once, None for a chat. Raises ValueError where there is none to read."""
    if args.prompt is None and args.prompt_file is None:
        if args.json:
            raise ValueError("--json needs --prompt TEXT or --prompt_file FILE")
        return None
    if args.prompt_file is not None:
        flag = f"--prompt_file {args.prompt_file}"
        try:
            text = Path(args.prompt_file).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{flag}: cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{flag}: must be UTF-8 text: {error.reason} at byte {error.start}") from None
        text = text.rstrip("\n")
    elif args.prompt == "-":
        flag, text = "--prompt -", sys.stdin.read().rstrip("\n")
    else:
        flag, text = "--prompt", args.prompt
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python passes on bytes that are not UTF-8
        raise ValueError(f"{flag}: must be UTF-8 text")
    if not text.strip():
        raise ValueError(f"{flag}: the text is empty; give some words to answer")
    return text


def _answer_once(session: ChatSession, text: str, as_json: bool) -> int:
    """One answer on stdout: its text while it is written, or one JSON object at the end. Returns the exit code."""
    ids = session.encode(text)
    if as_json:
        generation = session.pair.generate(ids, session.decode, method="speculative")
        result = {
            "text": generation.text,
            "ids": generation.ids,
            "stats": generation.stats.as_dict(),
            "config": settings(session),
        }
        print(json.dumps(result, ensure_ascii=False))
        return 0
    notes = make_console(sys.stderr)
    render.line(notes, render.banner(session.pair.describe()), "dim")
    answer = session.write("speculative", ids)
    render.line(notes, render.summary(answer), "dim")
    return 130 if answer.interrupted else 0
