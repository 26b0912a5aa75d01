"""A conversation as a file: JSON with all settings and statistics, or Markdown for reading."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pdevis.chat import render
from pdevis.chat.session import Answer, ChatSession
from pdevis.util.files import encode_json, make_parent_folder, parse_json, read_text, write_new


def describe_settings(session: ChatSession) -> dict[str, Any]:
    """Return all settings by their names: drafting as requested, decoding, and what the pair resolved them to."""
    requested = asdict(session.pair.draft)
    return (
        {"draft_mode": requested.pop("mode")}
        | requested
        | asdict(session.decode)
        | session.pair.describe()
        | {"chat": session.chat}
    )


def save_transcript(session: ChatSession, path: Path) -> bool:
    """Write the conversation to a file that does not exist yet: Markdown if it ends in .md, JSON otherwise.

    Returns:
        True if the folder of the file did not exist and was created.

    Raises:
        ValueError: there is no conversation, or the path cannot be written; the message names it.
    """
    if not session.turns:
        raise ValueError("/save: there is no conversation yet")
    data = _markdown(session) if path.suffix.lower() == ".md" else _json(session)
    try:
        created = make_parent_folder(path)
        write_new(path, data)
    except FileExistsError:
        raise ValueError(f"/save: {path} already exists and is not overwritten; give another name") from None
    except OSError as error:
        raise ValueError(f"/save: {path} cannot be written: {error.strerror or error}") from None
    return created


def load_transcript(path: Path) -> list[dict[str, str]]:
    """Return the messages of a conversation that `save_transcript` wrote as JSON.

    Raises:
        ValueError: the file cannot be read, or is another one.
    """
    try:
        content = parse_json(read_text(path))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    messages = content.get("messages") if isinstance(content, dict) else None
    fields = ("role", "content", "reasoning_content")
    if not isinstance(messages, list) or not all(
        isinstance(part, dict) and all(isinstance(part.get(name), str) for name in fields[:2]) for part in messages
    ):
        raise ValueError("is not a conversation that /save wrote as .json")
    return [{name: part[name] for name in fields if isinstance(part.get(name), str)} for part in messages]


def _json(session: ChatSession) -> bytes:
    turns = [
        {"user": turn.user, "chat": turn.chat, "answers": [_answer_as_dict(answer) for answer in turn.answers]}
        for turn in session.turns
    ]
    content = {"config": describe_settings(session), "messages": session.messages, "turns": turns}
    return encode_json(content, indent=2) + b"\n"


def _answer_as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "method": answer.method,
        "text": answer.text,
        "reasoning_text": answer.split.reasoning,
        "reasoning_tokens": answer.thoughts.tokens,
        "ids": answer.ids,
        "interrupted": answer.interrupted,
        "stats": answer.stats.as_dict(),
    }


def _markdown(session: ChatSession) -> bytes:
    parts = ["# Conversation", render.format_banner(session.pair.describe())]
    for turn in session.turns:
        parts += ["## User", turn.user]
        for answer in turn.answers:
            parts.append(f"## Model ({answer.method})")
            if answer.split.reasoning:
                tokens, finished = answer.thoughts.tokens, answer.split.finished
                thought = render.format_thought(tokens, answer.thought_seconds, finished)
                summary = f"<summary>{thought}</summary>"
                parts += [f"<details>{summary}", answer.split.reasoning, "</details>"]
            parts += [answer.split.answer, f"*{render.format_summary(answer)}*"]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "backslashreplace")
