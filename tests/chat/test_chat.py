"""The chat's session, commands and rendering, with a scripted pair and without a terminal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from helpers.chat_screen import Screen
from helpers.fake_pair import FakePair
from pdevis.chat.app import manage, talk
from pdevis.chat.render import token
from pdevis.generation import TokenEvent


def test_an_answer_streams_and_is_followed_by_its_line() -> None:
    out = Screen(FakePair(["sky blue"])).say("why?")
    assert out == (
        "sky blue\n8 tokens · 20.0 tok/s · acceptance 50 % · 2.67 tokens per round · skip 10.0 layers · "
        "drafting 37 % of the time\n"
    )


def test_memory_goes_into_the_next_prompt_and_prefixes_are_reused() -> None:
    screen = Screen(FakePair(["one", "two"]))
    screen.say("first", "  second ")
    assert screen.pair.prompts[1] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    assert all(config.reuse_prefix for _, _, config in screen.pair.calls)
    assert "forgotten" in screen.say("/reset")
    assert screen.session.messages == []
    assert screen.pair.resets == 1


def test_ctrl_c_in_mid_answer_keeps_what_was_confirmed() -> None:
    screen = Screen(FakePair(["sky blue", "next"], stop_at=3))
    out = screen.say("why?")
    assert out.startswith("sky\n3 tokens")
    assert "stopped" in out
    assert screen.session.messages[-1] == {"role": "assistant", "content": "sky"}
    assert screen.pair.streams[0].closed
    screen.pair.stop_at = None
    assert screen.say("go on").startswith("next\n")


def test_ctrl_c_before_the_first_token_drops_the_turn() -> None:
    screen = Screen(FakePair(stop_at=0))
    assert "0 tokens" in screen.say("why?")
    assert screen.session.messages == []


def test_ctrl_c_stops_the_decoders_that_have_not_answered_yet() -> None:
    screen = Screen(FakePair(stop_at=2))
    screen.say("/target", "why?")
    assert [call[0] for call in screen.pair.calls] == ["speculative"]


@pytest.mark.parametrize("error", [ValueError("no\nway"), RuntimeError("no way")])
def test_a_failing_answer_is_one_line_and_leaves_the_memory(error: Exception) -> None:
    screen = Screen(FakePair(["one"]))
    screen.say("first")
    screen.pair.stop_at, screen.pair.error = 0, error
    assert screen.say("second") == "no way\n"
    assert [message["content"] for message in screen.session.messages] == ["first", "one"]


def test_an_outgrown_context_says_what_to_do_and_keeps_the_session() -> None:
    screen = Screen(FakePair(["one"], context_length=30))
    assert "the prompt is too long: 42 tokens" in screen.say("x" * 39)
    screen.say("first")
    out = screen.say("y" * 20)
    for part in ("too long", "30", "/reset", "/save", "dropped"):
        assert part in out
    assert out.count("\n") == 1
    assert len(screen.session.messages) == 2
    assert len(screen.pair.calls) == 1


def test_several_decoders_answer_in_turn_with_their_ratios() -> None:
    screen = Screen(FakePair(["same", "same", "other"]))
    assert screen.say("/target", "/drafter").endswith("speculative, then target, then drafter\n")
    out = screen.say("why?")
    assert [call[0] for call in screen.pair.calls] == ["speculative", "target", "drafter"]
    assert out.index("[speculative]") < out.index("[target]") < out.index("[drafter]")
    assert "speed over the target's: speculative 2.00x, drafter 4.00x" in out
    assert "speculative wrote the same tokens as the target" in out
    assert screen.session.messages[-1]["content"] == "same"
    screen.pair.replies = ["this", "that"]
    assert "speculative wrote other tokens than the target" in screen.say("/drafter", "again")


def test_memory_takes_the_target_where_speculative_is_off() -> None:
    screen = Screen(FakePair(["target's", "drafter's"]))
    screen.say("/target", "/speculative", "/drafter", "why?")
    assert screen.session.messages[-1]["content"] == "target's"


def test_one_decoder_stays_on() -> None:
    screen = Screen()
    out = screen.say("/speculative")
    assert "only decoder" in out
    assert "/target or /drafter" in out
    assert screen.session.methods == ("speculative",)


def test_without_the_template_each_line_is_raw_text() -> None:
    screen = Screen(FakePair(["one", "two", "three"]), chat=False)
    screen.say("Once upon", "a time")
    assert screen.pair.prompts == ["Once upon", "a time"]
    assert "on: a conversation" in screen.say("/chat")
    screen.say("hello")
    assert screen.pair.prompts[-1] == [{"role": "user", "content": "hello"}]


def test_a_model_without_template_says_so() -> None:
    assert "--no-chat" in Screen(FakePair(template=False)).say("hello")


class Keys:
    """Lines as they are typed; an exception in the list is raised, and the list ends with the end of the input."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)

    def __call__(self) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


def test_ctrl_c_at_the_prompt_goes_on_and_ctrl_d_leaves() -> None:
    screen = Screen()
    talk(screen.session, Keys(KeyboardInterrupt(), "hi"), interactive=True)
    assert len(screen.pair.calls) == 1
    with pytest.raises(KeyboardInterrupt):
        talk(screen.session, Keys(KeyboardInterrupt(), "hi"))
    talk(screen.session, Keys("/quit", AssertionError("read after /quit")))


def test_the_manager_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    screen = Screen()
    assert manage(screen.session, Keys("stat", "start"))
    assert "did you mean start?" in screen.file.getvalue()
    assert not manage(screen.session, Keys("sweep 2", KeyboardInterrupt(), "exit"))
    assert len(list(tmp_path.iterdir())) == 1
    assert not manage(screen.session, Keys())


def test_on_a_terminal_tokens_are_coloured_and_escape_codes_of_the_model_are_not_obeyed() -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", legacy_windows=False)
    token(console, TokenEvent(1, "a", "draft", 0))
    token(console, TokenEvent(2, "\x1b[2J\n", "target", 0))
    token(console, TokenEvent(3, "c", "target", 0), mixed=False)
    out = file.getvalue()
    assert out.startswith("\x1b[32ma\x1b[0m\x1b[1m")
    assert out.endswith("c")
    assert "\x1b[2J" not in out


def test_the_chat_goes_on_where_the_drafters_own_processes_fail() -> None:
    screen = Screen(FakePair(["half of it", "whole"], stop_at=4))
    screen.pair.error = ConnectionResetError("the drafter's process on cpu:1 died (SIGKILL)")
    screen.session.decode = replace(screen.session.decode, overlap=True)
    out = screen.say("hi")
    assert screen.pair.recovered == 1
    assert "the drafter's process on cpu:1 died (SIGKILL)" in out
    assert "loading the drafter into this process" in out
    assert screen.session.history[-1][0].text == "whole"
    assert not screen.session.decode.overlap
