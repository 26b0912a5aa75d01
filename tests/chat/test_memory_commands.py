"""The chat's commands about the conversation: /system, /retry, /undo, /load, /set, /context, /trim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.chat import FakePair, Screen
from pdevis.chat.commands import SETTINGS
from pdevis.config import DecodeConfig


def talk(*lines: str, **options: object) -> Screen:
    screen = Screen(FakePair(**options))
    for line in lines:
        screen.enter(line)
    return screen


def test_system_message() -> None:
    screen = talk("/system Be brief.", "Hi")
    assert screen.pair.prompts[-1][0] == {"role": "system", "content": "Be brief."}
    assert screen.enter("/system") == "system message: Be brief.; show or set the system message; none removes it\n"
    assert screen.enter("/system none") == "system message: none\n"
    screen.enter("Again")
    assert screen.pair.prompts[-1][0]["role"] == "user"
    screen.enter("/reset")
    assert screen.session.system is None


def test_retry_replaces_the_answer() -> None:
    screen = talk("one", "two", replies=["first", "second", "third"])
    assert "third" in screen.enter("/retry")
    assert [(turn.user, turn.kept.text) for turn in screen.session.turns] == [("one", "first"), ("two", "third")]


@pytest.mark.parametrize("stop_at", [0, 2])
def test_retry_after_an_interrupted_answer(stop_at: int) -> None:
    screen = talk(stop_at=stop_at)
    screen.enter("question")
    screen.pair.stop_at = None
    screen.enter("/retry")
    assert [(turn.user, turn.kept.text) for turn in screen.session.turns] == [("question", "hello")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no way")])
def test_an_answer_stays_until_a_new_one_is_written(error: BaseException) -> None:
    screen = talk("why?", replies=["first", "second"])
    screen.pair.stop_at, screen.pair.error = 0, error
    screen.enter("/retry")
    assert [message["content"] for message in screen.session.messages] == ["why?", "first"]


def test_undo() -> None:
    screen = talk("one", "two")
    assert screen.enter("/undo") == "forgotten: 'two' and its answer\n"
    assert [turn.user for turn in screen.session.turns] == ["one"]
    assert "/retry: there is no message yet" in screen.enter("/retry")


def test_trim_and_context() -> None:
    screen = talk("one", "two", "three")
    used = len("u:one|a:hello|u:two|a:hello|u:three|a:hello|")
    assert screen.enter("/context") == f"{used} of 1000 tokens are in use, by 3 turns\n"
    assert screen.enter("/trim 2") == "the conversation has 1 turn left\n"
    assert [turn.user for turn in screen.session.turns] == ["three"]
    assert "by 1 turn\n" in screen.enter("/context")
    screen.enter("/reset")
    assert screen.enter("/context") == "0 of 1000 tokens are in use, by 0 turns\n"


def test_a_conversation_that_is_too_long_names_trim() -> None:
    screen = talk("one", "two", context_length=40)
    assert "/trim N forgets its first N turns" in screen.enter("a message that is too long by now")


def test_load_what_save_wrote(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    screen = talk("/system Be brief.", "one", "two", f"/save {file}")
    other = Screen(FakePair())
    assert other.enter(f"/load {file}") == f"loaded: {file}, 2 turns\n"
    assert other.session.messages == screen.session.messages
    other.enter("three")
    assert [turn.user for turn in other.session.turns] == ["one", "two", "three"]
    assert "hello" in other.enter("/retry")
    other.enter("/stats")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "/load"),
        ("[]", "is not a conversation that /save wrote"),
        ('{"messages": [{"role": "user"}]}', "is not a conversation that /save wrote"),
        ('{"messages": []}', "must be user and assistant in turn"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "must be user and assistant in turn"),
    ],
)
def test_load_of_another_file_changes_nothing(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    screen = talk("one")
    out = screen.enter(f"/load {file}")
    assert message in out
    assert out.count("\n") == 1
    assert len(screen.session.turns) == 1
    assert "cannot be read" in screen.enter(f"/load {tmp_path}/missing.json")


def test_every_decoding_setting_can_be_set() -> None:
    screen = Screen()
    lines = {
        "max_new_tokens 9": 9,
        "gamma auto": "auto",
        "temperature 0.5": 0.5,
        "top_k 4": 4,
        "top_p 0.9": 0.9,
        "min_p 0.1": 0.1,
        "seed 3": 3,
        "repetition_penalty 1.1": 1.1,
        "presence_penalty 0.5": 0.5,
        "frequency_penalty -0.5": -0.5,
        "min_new_tokens 2": 2,
        "logit_bias 5:1.5": {5: 1.5},
        "suppress_tokens 3,4": (3, 4),
        "stop The end.": ("The end.",),
    }
    assert {line.split()[0] for line in lines} == set(SETTINGS)
    for line, value in lines.items():
        name = line.split()[0]
        assert screen.enter(f"/set {line}") == f"{name} is {value}\n"
        assert getattr(screen.session.decode, name) == value
        assert screen.enter(f"/set {name}") == f"{name} is {value}\n"
    for name in ("seed", "logit_bias", "suppress_tokens", "stop"):
        screen.enter(f"/set {name} none")
        assert getattr(screen.session.decode, name) == getattr(DecodeConfig(), name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set", "/set NAME VALUE: NAME must be one of max_new_tokens, gamma"),
        ("/set topp 1", "/set topp: did you mean top_p?"),
        ("/set top_p 2", "/set top_p: 2.0 must be a finite number"),
        ("/set logit_bias 5", "/set logit_bias: "),
        ("/trim 5", "/trim: 5 must be at least 1 and at most 0"),
        ("/trim x", "/trim: 'x' must be a number of turns"),
        ("/undo", "/undo: there is no turn to forget"),
        ("/load", "/load needs the name of a .json file"),
        ("/context now", "/context takes no argument"),
    ],
)
def test_mistakes_are_one_line(line: str, message: str) -> None:
    out = Screen().enter(line)
    assert message in out
    assert out.count("\n") == 1


def test_saved_settings_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk("/set stop END", "one", f"/save {file}")
    assert json.loads(file.read_text())["config"]["stop"] == ["END"]
