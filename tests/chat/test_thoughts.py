"""Thoughts in the chat: dimmed and folded on a terminal, left out in a pipe, and never part of the memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.chat import FakePair, Screen, Terminal
from helpers.tiny_models import ANSWER, THOUGHT
from pdevis import load_pair
from pdevis.chat.commands import Chat
from pdevis.chat.screen.answer_display import THOUGHT_ROWS, DisplaySettings
from pdevis.chat.session import ChatSession
from pdevis.config import DecodeConfig

REPLY = "<think>\nTwo and two.\n</think>\n\nIt is **4**."
FOLDED = "thought: 29 tokens, 1.4 s\n"  # 20 tokens per second


def screen(*replies: str, terminal: bool = True, columns: int = 60, height: int = 24, **display: bool) -> Screen:
    pair = FakePair(list(replies) or [REPLY])
    shown_on = Terminal(columns, height) if terminal else None
    return Screen(pair, terminal=shown_on, display=DisplaySettings(**display), max_new_tokens=5000)


def test_a_thought_is_folded_into_one_line() -> None:
    assert screen().enter("why?").startswith(f"{FOLDED}It is 4.\n43 tokens")


def test_a_thought_is_dimmed_while_it_is_written() -> None:
    chat = screen()
    chat.pair.stop_at = 20
    chat.chat.console._color_system = 1
    chat.chat.display.shows_thoughts = True
    written: list[str] = []
    chat.file.write = lambda text: written.append(text) or len(text)
    chat.enter("why?")
    assert "\x1b[2mTwo\x1b[0m" in "".join(written)


@pytest.mark.parametrize("settings", [{"shows_thoughts": True}, {"plain": True}])
def test_a_thought_stays_if_it_is_to(settings: dict[str, bool]) -> None:
    out = screen(**settings).enter("why?")
    answer = "It is **4**." if "plain" in settings else "It is 4."
    assert out.startswith(f"Two and two.\n{FOLDED}{answer}\n43 tokens")


def test_the_last_rows_of_a_thought_are_on_the_screen() -> None:
    thought = " ".join(f"word{i}" for i in range(300))
    chat = screen(f"<think>{thought}")
    chat.pair.stop_at = 1500
    shown = []
    end = chat.pair.error

    class Stop(KeyboardInterrupt):
        def __init__(self) -> None:
            shown.append(chat.file.text)

    chat.pair.error = Stop
    out = chat.enter("why?")
    assert end is not None
    rows = shown[0].splitlines()
    assert len(rows) == THOUGHT_ROWS
    assert " ".join(" ".join(rows).split()) in thought
    assert out.startswith("thought: 1500 tokens, 75.0 s, not finished\n1500 tokens")
    assert out.count("word") == 0


@pytest.mark.parametrize("height", [3, 4, 10])
def test_long_thoughts_fold_on_any_screen(height: int) -> None:
    thought = "\n".join(f"line {i} of the thought" for i in range(40))
    out = screen(f"<think>{thought}</think>B", height=height).enter("why?")
    assert out.startswith("thought: ")
    assert "line" not in out.split("\n", 1)[1]
    assert "\nB\n" in out


def test_pipes_get_the_answer_or_all_of_the_text() -> None:
    assert screen(terminal=False).enter("why?").startswith(f"{FOLDED}It is **4**.\n43 tokens")
    out = screen(terminal=False, shows_thoughts=True).enter("why?")
    assert out.startswith(f"{REPLY}\n43 tokens")


def test_a_thought_that_does_not_end() -> None:
    for terminal in (True, False):
        chat = screen("<think>Two", "4", terminal=terminal)
        assert chat.enter("why?").startswith("thought: 10 tokens, 0.5 s, not finished\n10 tokens")
        chat.enter("and?")
        assert chat.pair.prompts[-1][1] == {"role": "assistant", "content": "", "reasoning_content": "Two"}


def test_a_limit_inside_a_thought_names_the_remedies() -> None:
    chat = screen("<think>Two and two", "Two and two", terminal=False)
    chat.enter("/length 10")
    assert "length limit reached inside the thought (/length N, /thinking off)\n" in chat.enter("why?")
    assert "length limit reached (/length N)\n" in chat.enter("why?")


def test_an_empty_thought_is_not_shown() -> None:
    assert screen("<think>\n\n</think>\n\nHi").enter("why?").startswith("Hi\n")


def test_a_tag_that_is_not_one_is_text() -> None:
    for text in ("2 <", "a <think", "<b>x</b> <th", "<"):
        assert screen(text, terminal=False).enter("why?").startswith(f"{text}\n")


def test_several_decoders_and_thoughts() -> None:
    chat = screen(REPLY, REPLY, "<think>a</think>B\n\n<think>c</think>D")
    out = chat.enter("/target", "why?")
    assert out.count(FOLDED[:19]) == 2
    assert "[target]" in out
    out = chat.enter("/target", "again")
    assert chat.session.messages[-1]["content"] == "D"
    assert out.count("thought: 16 tokens, 0.8 s\n") == 2


def test_memory_has_answers_and_the_template_decides_about_thoughts(tmp_path: Path) -> None:
    chat = screen(REPLY, "next")
    chat.enter("why?", "and?")
    assert chat.pair.prompts[-1][1] == {
        "role": "assistant",
        "content": "It is **4**.",
        "reasoning_content": "Two and two.",
    }
    file = tmp_path / "talk.json"
    chat.enter(f"/save {file}", f"/save {tmp_path}/talk.md")
    saved = json.loads(file.read_text())["turns"][0]["answers"][0]
    assert (saved["text"], saved["reasoning_text"], saved["reasoning_tokens"]) == (REPLY, "Two and two.", 29)
    text = (tmp_path / "talk.md").read_text()
    assert "<details><summary>thought: 29 tokens, 1.4 s</summary>\n\nTwo and two.\n\n</details>\n\nIt is **4**." in text
    other = screen("then")
    other.enter(f"/load {file}", "go on")
    assert other.pair.prompts[-1][:4] == chat.session.messages


def test_commands() -> None:
    chat = screen(terminal=False)
    usage = "thoughts: on, off or auto for the model; show them, or fold them into one line"
    assert chat.enter("/thinking") == f"thinking is auto, thoughts are folded into one line; {usage}\n"
    chat.enter("why?")
    assert chat.enter("/thinking show") == "Two and two.\nthinking is auto, thoughts stay on the screen\n"
    assert chat.enter("/thinking fold") == "thinking is auto, thoughts are folded into one line\n"
    assert chat.enter("/thinking maybe") == "/thinking: 'maybe' must be one of on, off, auto, show, fold\n"
    chat.pair.tokenizer.chat_template = "without"
    assert "/thinking: thinking = 'off': this model's chat template has no switch" in chat.enter("/thinking off")
    chat.pair.tokenizer.chat_template = "{{ enable_thinking }}"
    assert chat.enter("/thinking off") == "thinking is off, thoughts are folded into one line\n"
    assert chat.pair.tokenizer.template_options == {"enable_thinking": False}
    assert "thinking is on," in chat.enter("/thinking on")
    assert "thinking is auto," in chat.enter("/thinking auto")


@pytest.fixture
def session(thinking_folder: Path) -> ChatSession:
    return ChatSession(load_pair(str(thinking_folder), device="cpu"), DecodeConfig(max_new_tokens=32))


def test_a_model_that_thinks(session: ChatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = screen()
    chat.chat = Chat(session, chat.chat.console, chat.chat.threads)
    out = chat.enter("why?")
    assert out.startswith("thought: 4 tokens, ")
    assert f" s\n{ANSWER}\n7 tokens" in out
    turn = session.turns[0].kept
    assert (turn.text, turn.split.reasoning) == (f"<think>{THOUGHT}</think>\n\n{ANSWER}", THOUGHT)

    raw = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": turn.text}]
    ids = session.encode("and?")
    assert ids == session.pair.encode([*raw, {"role": "user", "content": "and?"}]), "the template's own way"
    first = session.pair.encode(raw[:1])
    assert ids[: len(first)] == first

    read: list[int] = []
    prefill = session.pair.target.prefill
    monkeypatch.setattr(session.pair.target, "prefill", lambda ids: read.append(len(ids)) or prefill(ids))
    chat.enter("and?")
    assert sum(read) <= len(ids) - len(first), "the cache of the first prompt is used again"

    chat.enter("/thinking off")
    assert chat.enter("then?").startswith(f"{ANSWER}\n2 tokens")


def test_a_prompt_that_opens_the_thought(opening_folder: Path) -> None:
    pair = load_pair(str(opening_folder), device="cpu")
    for shown in (False, True):
        chat = screen(terminal=False, shows_thoughts=shown)
        session = ChatSession(pair, DecodeConfig(max_new_tokens=32))
        chat.chat = Chat(session, chat.chat.console, chat.chat.threads, chat.chat.display)
        out = chat.enter("why?")
        if shown:
            assert out.startswith(f"<think>{THOUGHT}</think>\n\n{ANSWER}\n6 tokens")
        else:
            assert out.startswith("thought: 3 tokens, ")
            assert f"\n{ANSWER}\n6 tokens" in out
