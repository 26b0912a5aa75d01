"""The commands of the chat: one table from name to function, and the parsing of a command line.

A command that cannot be carried out raises ValueError with one line that says what is allowed; the chat continues.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pdevis.chat import render, sweep
from pdevis.chat.screen.answer_display import THOUGHT_STYLE, AnswerDisplay, DisplaySettings
from pdevis.chat.session import ChatEvent, ChatSession
from pdevis.chat.transcript import load_transcript, save_transcript
from pdevis.config import AUTO, CHECKS, METHODS, MODES, DecodeConfig, DraftConfig
from pdevis.text import THINKING_SWITCH, set_thinking
from pdevis.util.argtypes import gamma_value, id_numbers, nearest, parse_value
from pdevis.util.console import progress_on_stderr
from pdevis.util.files import expand_user

if TYPE_CHECKING:
    from pdevis.tune.free_cores import ThreadChoice

NONE = "none"  # takes a setting back
THINKING = {"on": True, "off": False, AUTO: None}  # values of the template's switch


class LeaveChat(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Chat:
    """A session, the console that shows it, the choice of threads before each answer, and how answers are shown."""

    session: ChatSession
    console: Console
    threads: ThreadChoice
    display: DisplaySettings = field(default_factory=DisplaySettings)

    def show(self, events: Iterator[ChatEvent]) -> None:
        """Show answers while they are written."""
        if note := self.threads.adapt():
            print(f"note: {note}", file=sys.stderr)
        headings = len(self.session.methods) > 1
        AnswerDisplay(self.console, headings=headings, settings=self.display).show(events)
        self.threads.watch()


@dataclass(frozen=True)
class Command:
    """A command; `argument` names its argument in the usage, and without one the command takes none."""

    run: Callable[[Chat, str], None]
    help: str
    argument: str = ""


def dispatch(chat: Chat, text: str) -> None:
    """Carry out a line that begins with a slash.

    Raises:
        ValueError: an unknown command (the nearest one is suggested) or argument.
        LeaveChat: on /quit.
    """
    name, _, argument = text[1:].strip().partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(ALIASES.get(name.lower(), name.lower()))
    if command is None:
        match = nearest(name.lower(), COMMANDS.keys() - FORGETFUL)
        raise ValueError(f"unknown command /{name}; " + (f"did you mean /{match}?" if match else "/help lists them"))
    if argument and not command.argument:
        raise ValueError(f"/{name} takes no argument, got {argument!r}")
    command.run(chat, argument)


def _help(chat: Chat, argument: str) -> None:
    lines = [(f"/{name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    render.show_help(chat.console, lines)


def _quit(chat: Chat, argument: str) -> None:
    raise LeaveChat


def _clear_screen(chat: Chat, argument: str) -> None:
    chat.console.clear()


def _stats(chat: Chat, argument: str) -> None:
    render.show_stats(chat.console, chat.session)


def _reset(chat: Chat, argument: str) -> None:
    chat.session.reset()
    render.print_line(chat.console, "the conversation is forgotten (/cls clears the screen)")


def _toggle(method: str) -> Callable[[Chat, str], None]:
    """Return the command that turns a decoder on or off."""

    def run(chat: Chat, argument: str) -> None:
        chat.session.toggle(method)
        render.print_line(chat.console, f"active decoders: {', '.join(chat.session.methods)}")

    return run


def _chat(chat: Chat, argument: str) -> None:
    session = chat.session
    session.chat = not session.chat
    state = "on: a conversation with memory" if session.chat else "off: each line is continued as it is, without memory"
    render.print_line(chat.console, f"chat template {state}")


def _setting(
    command: str, config: type, *, convert: Callable[[str], Any], field: str | None = None
) -> Callable[[Chat, str], None]:
    """Return the command that shows a setting, or changes it if a value is given.

    Args:
        config: the settings dataclass, `DraftConfig` or `DecodeConfig`.
        convert: turns the argument into a value of the field.
        field: name of the field; None: the name of the command.
    """
    name = field or command

    def run(chat: Chat, argument: str) -> None:
        session, drafting = chat.session, config is DraftConfig
        if argument:
            value = _about(f"/{command}", lambda: parse_value(config, name, convert, argument))
            if drafting:
                with progress_on_stderr(f"{command} {argument}") as session.pair.on_progress:  # may choose a schedule
                    session.set_draft(**{name: value})
            else:
                session.set_decode(**{name: value})
        current = getattr(session.pair.draft if drafting else session.decode, name)
        resolved = f" (which is {session.pair.mode} here)" if drafting and current == AUTO else ""
        usage = "" if argument else f"; {COMMANDS[command].help}"
        render.print_line(chat.console, f"{command} is {current}{resolved}{usage}")

    return run


def _sweep(chat: Chat, argument: str) -> None:
    session, console = chat.session, chat.console
    gammas: list[int | str] = [_gamma(word) for word in argument.split()] or list(sweep.DEFAULT_GAMMAS)
    gammas += [session.decode.gamma, AUTO]
    ids = session.last_ids
    if ids is None:
        text = sweep.DEFAULT_PROMPT
        ids = session.pair.encode([{"role": "user", "content": text}] if session.chat else text, chat=session.chat)
    try:
        if console.is_terminal:
            with console.status("measuring") as status:
                rows = sweep.run_sweep(
                    session.pair, ids, config=session.decode, gammas=gammas, on_progress=status.update
                )
        else:
            rows = sweep.run_sweep(session.pair, ids, config=session.decode, gammas=gammas)
    except KeyboardInterrupt:
        render.print_line(console, "sweep stopped; nothing saved")
        return
    sweep.show_sweep(console, rows, mode=session.pair.mode)
    path = Path.cwd() / time.strftime("pdevis-sweep-%Y%m%d-%H%M%S.png")
    about = session.pair.describe()
    title = f"target {about['target']}, drafter {about['drafter']}, mode {about['mode']}"
    try:
        sweep.save_plot(rows, path, title=title)
    except OSError as error:
        raise ValueError(f"/sweep: the plot {path} cannot be written: {error.strerror or error}") from None
    render.print_line(console, f"plot: {path}")


def _gamma(word: str) -> int | str:
    return _about("/sweep: each gamma", lambda: parse_value(DecodeConfig, "gamma", gamma_value, word))


def _system(chat: Chat, argument: str) -> None:
    session = chat.session
    if argument:
        session.system = None if argument == NONE else argument
    text = "none" if session.system is None else session.system
    render.print_line(chat.console, f"system message: {text}" + ("" if argument else f"; {COMMANDS['system'].help}"))


def _retry(chat: Chat, argument: str) -> None:
    if chat.session.last_message is None:
        raise ValueError("/retry: there is no message yet")
    chat.show(chat.session.retry())


def _thinking(chat: Chat, argument: str) -> None:
    tokenizer = chat.session.pair.tokenizer
    if argument in THINKING:
        _about("/thinking", lambda: set_thinking(tokenizer, THINKING[argument]))
    elif argument in ("show", "fold"):
        chat.display.shows_thoughts = argument == "show"
    elif argument:
        raise ValueError(f"/thinking: {argument!r} must be one of {', '.join((*THINKING, 'show', 'fold'))}")
    if argument == "show":
        _show_last_thought(chat)
    switch = getattr(tokenizer, "template_options", {}).get(THINKING_SWITCH)
    state = next(name for name, value in THINKING.items() if value is switch)
    shown = "stay on the screen" if chat.display.shows_thoughts else "are folded into one line"
    usage = "" if argument else f"; {COMMANDS['thinking'].help}"
    render.print_line(chat.console, f"thinking is {state}, thoughts {shown}{usage}")


def _show_last_thought(chat: Chat) -> None:
    """Print the thought of the last answer, if it has one."""
    turn = chat.session.turns[-1] if chat.session.turns else None
    if turn and turn.kept.split.reasoning:
        render.print_line(chat.console, render.visible(turn.kept.split.reasoning), style=THOUGHT_STYLE)


def _undo(chat: Chat, argument: str) -> None:
    turn = _about("/undo", chat.session.undo)
    render.print_line(chat.console, f"forgotten: {turn.user!r} and its answer")


def _trim(chat: Chat, argument: str) -> None:
    count = _about("/trim", lambda: parse_count(argument or "1"))
    left = _about("/trim", lambda: chat.session.trim(count))
    render.print_line(chat.console, f"the conversation has {format_turns(left)} left")


def _context(chat: Chat, argument: str) -> None:
    used, whole = chat.session.context_tokens(), chat.session.pair.context_length
    turns = format_turns(len(chat.session.turns))
    render.print_line(chat.console, f"{used} of {whole} tokens are in use, by {turns}")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name not in SETTINGS:
        match = nearest(name, SETTINGS)
        hint = f"did you mean {match}?" if name and match else f"must be one of {', '.join(SETTINGS)}"
        raise ValueError(f"/set {name}: {hint}" if name else f"/set NAME VALUE: NAME {hint}")
    if value.strip():
        parsed = _about(f"/set {name}", lambda: parse_value(DecodeConfig, name, SETTINGS[name], value.strip()))
        chat.session.set_decode(**{name: parsed})
    render.print_line(chat.console, f"{name} is {getattr(chat.session.decode, name)}")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise ValueError("/load needs the name of a .json file that /save wrote")
    path = expand_user(argument)
    _about(f"/load: {path}", lambda: chat.session.remember(load_transcript(path)))
    render.print_line(chat.console, f"loaded: {path}, {format_turns(len(chat.session.turns))}")


def format_turns(count: int) -> str:
    """Return a number of turns, as in "1 turn"."""
    return f"{count} turn{'s' * (count != 1)}"


def _about(where: str, run: Callable[[], Any]) -> Any:
    """Run something; say where in its error."""
    try:
        return run()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def parse_count(text: str) -> int:
    """Return a number of turns."""
    if not text.isdecimal():
        raise ValueError(f"{text!r} must be a number of turns")
    return int(text)


def _optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a conversion that takes "none" too."""
    return lambda text: None if text == NONE else convert(text)


def _save(chat: Chat, argument: str) -> None:
    if not argument:
        raise ValueError("/save needs a file name: NAME.json or NAME.md")
    path = expand_user(argument)
    if save_transcript(chat.session, path):
        render.print_line(chat.console, f"created the folder {path.parent}")
    render.print_line(chat.console, f"saved: {path}")


# of /set: every decoding setting of an answer, with the conversion of its text
SETTINGS: dict[str, Callable[[str], Any]] = {
    "max_new_tokens": int,
    "gamma": gamma_value,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "seed": _optional(int),
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "min_new_tokens": int,
    "logit_bias": lambda text: {} if text == NONE else id_numbers(text),
    "suppress_tokens": lambda text: () if text == NONE else tuple(map(int, text.split(","))),
    "stop": lambda text: () if text == NONE else (text,),
}
ALIASES = {"reset": "clear", "exit": "quit", "bye": "quit", "?": "help"}
FORGETFUL = {"clear", "undo", "trim"}  # never suggested for a name that does not exist
COMMANDS: dict[str, Command] = {
    "help": Command(_help, "list the commands"),
    "quit": Command(_quit, "leave (as Ctrl-D, /exit and /bye do)"),
    "cls": Command(_clear_screen, "clear the screen"),
    **{method: Command(_toggle(method), f"turn {method} decoding on or off") for method in METHODS},
    "chat": Command(_chat, "turn the chat template on or off"),
    "length": Command(
        _setting("length", DecodeConfig, convert=int, field="max_new_tokens"),
        "limit on an answer's tokens",
        argument="N",
    ),
    "gamma": Command(
        _setting("gamma", DecodeConfig, convert=gamma_value),
        "draft tokens per round, at least 1, or auto",
        argument="N",
    ),
    "mode": Command(_setting("mode", DraftConfig, convert=str), f"drafting mode: {', '.join(MODES)}", argument="M"),
    "check": Command(
        _setting("check", DraftConfig, convert=str), f"when layers are chosen: {', '.join(CHECKS)}", argument="WHEN"
    ),
    "threshold": Command(
        _setting("threshold", DraftConfig, convert=float),
        "cosine above which a layer is redundant, as 0.9",
        argument="X",
    ),
    "window": Command(
        _setting("window", DraftConfig, convert=int), "layers that start from one hidden state", argument="N"
    ),
    "temperature": Command(
        _setting("temperature", DecodeConfig, convert=float), "0 is greedy, above 0 samples", argument="X"
    ),
    "set": Command(_set, "show or change any decoding setting, such as top_p or stop", argument="NAME VALUE"),
    "thinking": Command(
        _thinking, "thoughts: on, off or auto for the model; show them, or fold them into one line", argument="WHEN"
    ),
    "system": Command(_system, f"show or set the system message; {NONE} removes it", argument="TEXT"),
    "retry": Command(_retry, "answer the last message again"),
    "undo": Command(_undo, "forget the last message and its answer"),
    "context": Command(_context, "tokens of the conversation, and how many the models hold"),
    "trim": Command(_trim, "forget the first N turns (1)", argument="N"),
    "stats": Command(_stats, "totals of this session, and the last answer in detail"),
    "clear": Command(_reset, "forget the conversation (so does /reset); the system message stays"),
    "sweep": Command(_sweep, "measure gammas on the last prompt, also the current one and auto", argument="G1 G2 …"),
    "save": Command(_save, "write the conversation to FILE (.json, or .md)", argument="FILE"),
    "load": Command(_load, "continue a conversation that /save wrote as .json", argument="FILE"),
}
# what Tab completes after a command
VALUES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "check": CHECKS,
    "gamma": (AUTO,),
    "thinking": (*THINKING, "show", "fold"),
    "system": (NONE,),
    "set": tuple(SETTINGS),
}
