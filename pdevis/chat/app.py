"""From flags to a running chat: loading the pair with progress, then the loop over the user's lines.

Answers and tables go to stdout, progress to stderr. The exit code at the end of piped input is 0.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pdevis.chat import render
from pdevis.chat.commands import COMMANDS, VALUES, Chat, LeaveChat, dispatch
from pdevis.chat.oneshot import answer_once, read_prompt
from pdevis.chat.screen.answer_display import DisplaySettings
from pdevis.chat.session import ChatSession
from pdevis.chat.terminal import line_reader, terminal_reader
from pdevis.cli import DEFAULT_TARGET, Parser, is_main_rank, pair_arguments
from pdevis.controls.decode_flags import decode_config, given_fields
from pdevis.controls.model_settings import fill_in
from pdevis.util.argtypes import choice, nearest
from pdevis.util.console import make_console, progress_on_stderr

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair
    from pdevis.tune.free_cores import ThreadChoice

MANAGER_CHOICES = {"start": "talk to the models", "sweep": "measure several gammas: sweep 2 4 6", "exit": "leave"}


def add_chat_flags(parser: Parser) -> None:
    """Add the flags of appInference.py that no other script has."""
    group = parser.add_argument_group("chat")
    first = group.add_mutually_exclusive_group()
    first.add_argument("--prompt", metavar="TEXT", help="answer once and exit; - reads the text from stdin")
    first.add_argument("--prompt_file", metavar="FILE", help="as --prompt, with the text of a file")
    first.add_argument("--manager", action="store_true", help="ask before the chat: start, sweep or exit")
    group.add_argument("--system", metavar="TEXT", help="system message: instructions before the conversation")
    group.add_argument(
        "--plain", action="store_true", help="show answers as the model writes them: no Markdown, nothing is folded"
    )
    group.add_argument(
        "--thoughts",
        type=choice("fold", "show"),
        default="fold",
        metavar="HOW",
        help="thoughts of the model: fold (one line; left out in a pipe, the default) or show",
    )
    group.add_argument("--json", action="store_true", help="with --prompt: one JSON object {text, ids, stats, config}")
    group.add_argument(
        "--no-chat", dest="chat", action="store_false", help="no chat template: continue the text as it is"
    )


def run_chat(args: argparse.Namespace) -> int:
    """Answer once, or chat until the user leaves; returns the exit code.

    Raises:
        ValueError: a user's mistake, found before the models are loaded if possible.
    """
    arguments = pair_arguments(args)
    if not is_main_rank(args):
        _load_pair(arguments)
        return 0
    prompt = read_prompt(args)
    decode = decode_config(args)
    pair, threads = _load_with_progress(args, arguments)
    decode = fill_in(decode, given_fields(args), pair.defaults)
    display = DisplaySettings(plain=args.plain, shows_thoughts=args.thoughts == "show")
    session = ChatSession(pair, decode, chat=args.chat, system=args.system)
    if prompt is not None:
        threads.adapt()
        return answer_once(session, prompt, as_json=args.json, settings=display)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    chat = Chat(session, make_console(), threads, display)
    render.print_line(chat.console, render.format_banner(session.pair.describe()), style="dim")
    commands = {name: command.help for name, command in COMMANDS.items()}
    read = terminal_reader(commands, VALUES) if interactive else line_reader(sys.stdin)
    if not args.manager or manage(chat, read):
        if interactive:
            if args.target_model == DEFAULT_TARGET:
                text = "a small model, for a demonstration: --target_model NAME takes a better one, such as qwen-4b-I"
                render.print_line(chat.console, text, style="dim")
            render.print_line(chat.console, "/help lists the commands, Ctrl-D leaves", style="dim")
        talk(chat, read, interactive=interactive)
    return 0


def _load_pair(arguments: dict[str, Any]) -> SpeculativePair:
    from pdevis.pair import load_pair  # torch takes seconds to import, and mistakes in flags are found without it

    return load_pair(**arguments)


def _thread_choice(args: argparse.Namespace) -> ThreadChoice:
    """Return the choice of torch's threads, which are left alone on GPUs and where flags place models or threads."""
    import torch

    from pdevis.tune.free_cores import ThreadChoice

    placed = (args.device, args.target_device, args.draft_device, args.profile, args.overlap or None)
    on_cpu = args.device == "cpu" or not torch.cuda.is_available()
    return ThreadChoice(enabled=on_cpu and all(value in (None, "cpu") for value in placed))


def _load_with_progress(args: argparse.Namespace, arguments: dict[str, Any]) -> tuple[SpeculativePair, ThreadChoice]:
    """Return the pair, and the choice of threads, which watches the cores while the models load."""
    gc.disable()  # else Python searches the imports of torch for garbage again and again: a tenth of the time
    try:
        with progress_on_stderr("loading the models") as on_progress:
            threads = _thread_choice(args)
            return _load_pair({**arguments, "on_progress": on_progress}), threads
    finally:
        gc.enable()


def handle(chat: Chat, text: str) -> bool:
    """Process one line of the user, a command or a message. Returns False if the user leaves.

    Mistakes are shown; the conversation stays as it was.
    """
    text = text.strip()
    try:
        if text.startswith("/") and not text.startswith("//"):
            dispatch(chat, text)
        elif text:
            chat.show(chat.session.answer(text[1:] if text.startswith("//") else text))
    except LeaveChat:
        return False
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError) as error:  # if stdout is what fails, this fails too and ends the chat
        render.print_error(chat.console, error)
    return True


def talk(chat: Chat, read: Callable[[], str], interactive: bool = False) -> None:
    """Process the user's lines until /quit or the end of the input. Ctrl-C ends the chat only if not interactive."""
    while True:
        try:
            if not handle(chat, read()):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise


def manage(chat: Chat, read: Callable[[], str]) -> bool:
    """Run the manager prompt that precedes the chat. Returns True if the chat is to start."""
    choices = " · ".join(f"{name} ({text})" for name, text in MANAGER_CHOICES.items())
    render.print_line(chat.console, choices)
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
            handle(chat, f"/sweep {argument}")
        elif name:
            match = nearest(name, MANAGER_CHOICES)
            hint = f"did you mean {match}?" if match else f"must be one of {choices}"
            render.print_error(chat.console, f"unknown choice {name!r}; {hint}")
