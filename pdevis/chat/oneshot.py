"""One-shot answers: `--prompt` or `--prompt_file`, as text or as one JSON object on stdout.

python appInference.py --prompt "Why is the sky blue?" --json
"""

from __future__ import annotations

import argparse
import os
import sys

from pdevis.chat import render
from pdevis.chat.screen.answer_display import AnswerDisplay, DisplaySettings
from pdevis.chat.session import ChatSession
from pdevis.chat.transcript import describe_settings
from pdevis.util.console import make_console
from pdevis.util.files import NotTextError, decode_text, print_json, read_stdin, read_text


def read_prompt(args: argparse.Namespace) -> str | None:
    """Return the text to answer once; None for a chat. Raises ValueError if it cannot be read or is empty."""
    if args.prompt is None and args.prompt_file is None:
        if args.json:
            raise ValueError("--json needs --prompt TEXT or --prompt_file FILE")
        return None
    if args.prompt_file is not None:
        flag, text = f"--prompt_file {args.prompt_file}", _read_file(args.prompt_file)
    elif args.prompt == "-":
        flag, text = "--prompt -", read_stdin().rstrip("\n")
    else:
        flag, text = "--prompt", decode_text(_argument_bytes(args.prompt), "--prompt")
    if not text.strip():
        raise ValueError(f"{flag}: the text is empty; give a text to answer")
    return text


def _read_file(name: str) -> str:
    try:
        return read_text(name).rstrip("\n")
    except OSError as error:
        raise ValueError(f"--prompt_file {name}: cannot be read: {error.strerror or error}") from None
    except NotTextError as error:
        raise ValueError(f"--prompt_file {error}") from None


def _argument_bytes(text: str) -> bytes:
    """Return the bytes of an argument. Python reads those that are not in the locale's encoding as half surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)


def answer_once(session: ChatSession, text: str, *, as_json: bool, settings: DisplaySettings) -> int:
    """Answer on stdout: the text while it is written, or one JSON object at the end. Returns the exit code."""
    if as_json:
        generation, thoughts = session.generate(text)
        result = {
            "text": generation.text,
            "ids": generation.ids,
            "stats": generation.stats.as_dict(),
            "config": describe_settings(session),
        }
        if thoughts.tokens:
            split = thoughts.split
            result |= {
                "reasoning_text": split.reasoning,
                "reasoning_tokens": thoughts.tokens,
                "answer_text": split.answer,
            }
        print_json(result)
        return 0
    notes = make_console(sys.stderr)
    ids = session.encode(text)
    render.print_line(notes, render.format_banner(session.pair.describe()), style="dim")
    display = AnswerDisplay(make_console(sys.stdout), notes, settings=settings)
    finished = display.show(session.write("speculative", ids))
    return 130 if finished.answer.interrupted else 0
