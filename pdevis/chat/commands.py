"""The commands of the chat: one table from name to function, and the parsing of a command line.

A command that cannot be carried out raises ValueError with one line that says what is allowed; the session goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdevis.chat import render, sweep
from pdevis.chat.session import METHODS, ChatSession
from pdevis.config import AUTO, MODES, DecodeConfig, DraftConfig
from pdevis.util.argtypes import gamma_value, nearest, parse_value


class LeaveChat(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """A command: `argument` is what follows its name in the usage; without one, nothing may follow."""

    run: Callable[[ChatSession, str], None]
    help: str
    argument: str = ""


def dispatch(session: ChatSession, text: str) -> None:
    """Carry out a line that begins with a slash.

    Raises:
        ValueError: an unknown command (the nearest one is suggested) or argument.
        LeaveChat: on /quit.
    """
    name, _, argument = text[1:].strip().partition(" ")
    argument = argument.strip()
    command = COMMANDS.get(name.lower())
    if command is None:
        match = nearest(name.lower(), COMMANDS)
        raise ValueError(
            f"there is no command /{name}; " + (f"did you mean /{match}?" if match else "/help lists them")
        )
    if argument and not command.argument:
        raise ValueError(f"/{name} takes no argument, got {argument!r}")
    command.run(session, argument)


def save(session: ChatSession, path: Path) -> None:
    """Write the conversation to a file that does not exist yet: Markdown where it ends in .md, JSON otherwise.

    Raises:
        ValueError: nothing to save, or a path that cannot be written; the message names it.
    """
    if not session.turns:
        raise ValueError("/save: there is no conversation yet")
    text = _markdown(session) if path.suffix.lower() == ".md" else _json(session)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"/save: {path} exists already and is left as it is; give another name") from None
    except OSError as error:
        raise ValueError(f"/save: {path} cannot be written: {error.strerror or error}") from None


def settings(session: ChatSession) -> dict[str, Any]:
    """All settings in force, by their names: drafting as asked for, decoding, and what the pair made of them."""
    asked = asdict(session.pair.draft)
    return (
        {"draft_mode": asked.pop("mode")}
        | asked
        | asdict(session.decode)
        | session.pair.describe()
        | {"chat": session.chat}
    )


def _json(session: ChatSession) -> str:
    turns = [
        {
            "user": turn.user,
            "chat": turn.chat,
            "answers": [
                {
                    "method": answer.method,
                    "text": answer.text,
                    "ids": answer.ids,
                    "interrupted": answer.interrupted,
                    "stats": answer.stats.as_dict(),
                }
                for answer in turn.answers
            ],
        }
        for turn in session.turns
    ]
    content = {"config": settings(session), "messages": session.messages, "turns": turns}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _markdown(session: ChatSession) -> str:
    parts = ["# Conversation", render.banner(session.pair.describe())]
    for turn in session.turns:
        parts += ["## User", turn.user]
        for answer in turn.answers:
            parts += [f"## Model ({answer.method})", answer.text, f"*{render.summary(answer)}*"]
    return "\n\n".join(parts) + "\n"


def _help(session: ChatSession, argument: str) -> None:
    lines = [(f"/{name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    render.show_help(session.console, lines)


def _quit(session: ChatSession, argument: str) -> None:
    raise LeaveChat


def _clear(session: ChatSession, argument: str) -> None:
    session.console.clear()


def _stats(session: ChatSession, argument: str) -> None:
    render.show_stats(session)


def _reset(session: ChatSession, argument: str) -> None:
    session.reset()
    render.line(session.console, "the conversation is forgotten")


def _toggle(method: str) -> Callable[[ChatSession, str], None]:
    def run(session: ChatSession, argument: str) -> None:
        session.toggle(method)
        render.line(session.console, f"answers come from: {', then '.join(session.methods)}")

    return run


def _chat(session: ChatSession, argument: str) -> None:
    session.chat = not session.chat
    state = (
        "on: a conversation with memory" if session.chat else "off: each line is continued as it stands, without memory"
    )
    render.line(session.console, f"chat template {state}")


def _setting(
    command: str, config: type, name: str, convert: Callable[[str], Any]
) -> Callable[[ChatSession, str], None]:
    """A command that shows a setting, or changes it where a value is given."""

    def run(session: ChatSession, argument: str) -> None:
        drafting = config is DraftConfig
        if argument:
            try:
                value = parse_value(config, name, convert, argument)
            except ValueError as error:
                raise ValueError(f"/{command}: {error}") from None
            (session.set_draft if drafting else session.set_decode)(**{name: value})
        now = getattr(session.pair.draft if drafting else session.decode, name)
        note = f" (which is {session.pair.mode} here)" if drafting and now == AUTO else ""
        render.line(session.console, f"{command} is {now}{note}" + ("" if argument else f"; {COMMANDS[command].help}"))

    return run


def _sweep(session: ChatSession, argument: str) -> None:
    gammas = [_gamma(word) for word in argument.split()] or list(sweep.DEFAULT_GAMMAS)
    console = session.console
    ids = session.last_ids
    if ids is None:
        text = sweep.DEFAULT_PROMPT
        ids = session.pair.encode([{"role": "user", "content": text}] if session.chat else text, chat=session.chat)
    try:
        if console.is_terminal:
            with console.status("measuring") as status:
                rows = sweep.run_sweep(session.pair, ids, session.decode, gammas, status.update)
        else:
            rows = sweep.run_sweep(session.pair, ids, session.decode, gammas)
    except KeyboardInterrupt:
        render.line(console, "sweep stopped; nothing saved")
        return
    sweep.show_sweep(console, rows, session.pair.mode)
    path = Path.cwd() / time.strftime("pdevis-sweep-%Y%m%d-%H%M%S.png")
    about = session.pair.describe()
    try:
        sweep.save_plot(rows, path, f"target {about['target']}, drafter {about['drafter']}, mode {about['mode']}")
    except OSError as error:
        raise ValueError(f"/sweep: the plot {path} cannot be written: {error.strerror or error}") from None
    render.line(console, f"plot: {path}")


def _gamma(word: str) -> int:
    try:
        return parse_value(DecodeConfig, "gamma", int, word)
    except ValueError as error:
        allowed = str(error).removesuffix(f" or {AUTO!r}")  # a sweep draws speed against γ
        raise ValueError(f"/sweep: each gamma: {allowed}") from None


def _save(session: ChatSession, argument: str) -> None:
    if not argument:
        raise ValueError("/save needs a file name: NAME.json or NAME.md")
    path = Path(argument).expanduser()
    save(session, path)
    render.line(session.console, f"saved: {path}")


COMMANDS: dict[str, Command] = {
    "help": Command(_help, "this list"),
    "quit": Command(_quit, "leave (as Ctrl-D does)"),
    "clear": Command(_clear, "clear the screen"),
    **{method: Command(_toggle(method), f"turn answers of {method} decoding on or off") for method in METHODS},
    "chat": Command(_chat, "turn the chat template on or off"),
    "length": Command(_setting("length", DecodeConfig, "max_new_tokens", int), "limit on an answer's tokens", "N"),
    "gamma": Command(
        _setting("gamma", DecodeConfig, "gamma", gamma_value), "draft tokens per round, at least 1, or auto", "N"
    ),
    "mode": Command(_setting("mode", DraftConfig, "mode", str), f"drafting mode: {', '.join(MODES)}", "M"),
    "threshold": Command(
        _setting("threshold", DraftConfig, "threshold", float), "cosine above which a layer is redundant, as 0.9", "X"
    ),
    "window": Command(_setting("window", DraftConfig, "window", int), "layers that start from one hidden state", "N"),
    "temperature": Command(
        _setting("temperature", DecodeConfig, "temperature", float), "0 is greedy, above 0 samples", "X"
    ),
    "stats": Command(_stats, "totals of this session, and the last answer in detail"),
    "reset": Command(_reset, "forget the conversation"),
    "sweep": Command(_sweep, "measure several gammas on the last prompt; table and plot", "G1 G2 …"),
    "save": Command(_save, "write the conversation to FILE (.json, or .md)", "FILE"),
}
