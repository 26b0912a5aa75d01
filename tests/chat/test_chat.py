"""The chat's session, commands and rendering, with a scripted pair and without a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.chat import FakePair, Screen
from pdevis.chat.app import manage, talk
from pdevis.chat.screen.answer_display import AnswerDisplay


def test_an_answer_streams_and_is_followed_by_its_summary() -> None:
    out = Screen(FakePair(["sky blue"])).enter("why?")
    assert out == (
        "sky blue\n8 tokens · 20.0 tok/s · acceptance 50 % · 2.67 tokens per round · skip 10.0 layers · "
        "drafting 37 % of the time\n"
    )


def test_memory_goes_into_the_next_prompt_and_prefixes_are_reused() -> None:
    screen = Screen(FakePair(["one", "two"]))
    screen.enter("first", "  second ")
    assert screen.pair.prompts[1] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]
    assert all(config.reuse_prefix for _, _, config in screen.pair.calls)
    assert "forgotten" in screen.enter("/reset")
    assert screen.session.messages == []
    assert screen.pair.resets == 1


def test_ctrl_c_during_an_answer_keeps_the_confirmed_tokens() -> None:
    screen = Screen(FakePair(["sky blue", "next"], stop_at=3))
    out = screen.enter("why?")
    assert out.startswith("sky\n3 tokens")
    assert "stopped" in out
    assert screen.session.messages[-1] == {"role": "assistant", "content": "sky"}
    assert screen.pair.streams[0].closed
    screen.pair.stop_at = None
    assert screen.enter("go on").startswith("next\n")


def test_ctrl_c_while_a_token_is_shown_stops_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(FakePair(["sky blue"]))

    write = AnswerDisplay._write_pipe

    def interrupt(display: AnswerDisplay, text: str) -> None:
        if text == "y":
            raise KeyboardInterrupt
        write(display, text)

    monkeypatch.setattr(AnswerDisplay, "_write_pipe", interrupt)
    assert screen.enter("why?").startswith("sk\n3 tokens")
    assert screen.session.messages[-1] == {"role": "assistant", "content": "sky"}
    assert screen.pair.streams[0].closed


def test_ctrl_c_before_the_first_token_drops_the_turn() -> None:
    screen = Screen(FakePair(stop_at=0))
    assert "0 tokens" in screen.enter("why?")
    assert screen.session.messages == []


def test_ctrl_c_stops_the_decoders_that_have_not_answered_yet() -> None:
    screen = Screen(FakePair(stop_at=2))
    screen.enter("/target", "why?")
    assert [call[0] for call in screen.pair.calls] == ["speculative"]


@pytest.mark.parametrize("error", [ValueError("no\nway"), RuntimeError("no way")])
def test_a_failing_answer_is_one_line_and_keeps_the_memory(error: Exception) -> None:
    screen = Screen(FakePair(["one"]))
    screen.enter("first")
    screen.pair.stop_at, screen.pair.error = 0, error
    assert screen.enter("second") == "no way\n"
    assert [message["content"] for message in screen.session.messages] == ["first", "one"]


def test_a_full_context_gives_advice_and_keeps_the_session() -> None:
    screen = Screen(FakePair(["one"], context_length=30))
    assert "the prompt is too long: 42 tokens" in screen.enter("x" * 39)
    screen.enter("first")
    out = screen.enter("y" * 20)
    for part in ("too long", "30", "/clear", "/save", "dropped"):
        assert part in out
    long = screen.enter("z" * 39)
    assert long.startswith("this message is too long: 42 tokens without the conversation before it, and the models'")
    assert out.count("\n") == 1
    assert len(screen.session.messages) == 2
    assert len(screen.pair.calls) == 1


def test_several_decoders_answer_one_after_another_with_speedups() -> None:
    screen = Screen(FakePair(["same", "same", "other"]))
    assert screen.enter("/target", "/drafter").endswith("active decoders: speculative, target, drafter\n")
    out = screen.enter("why?")
    assert [call[0] for call in screen.pair.calls] == ["speculative", "target", "drafter"]
    assert out.index("[speculative]") < out.index("[target]") < out.index("[drafter]")
    assert "speedup over the target: speculative 2.00x, drafter 4.00x" in out
    assert "speculative wrote the same tokens as the target" in out
    assert screen.session.messages[-1]["content"] == "same"
    screen.pair.replies = ["this", "that"]
    assert "speculative wrote different tokens from the target" in screen.enter("/drafter", "again")


def test_memory_takes_the_target_if_speculative_is_off() -> None:
    screen = Screen(FakePair(["target's", "drafter's"]))
    screen.enter("/target", "/speculative", "/drafter", "why?")
    assert screen.session.messages[-1]["content"] == "target's"


def test_the_last_active_decoder_cannot_be_turned_off() -> None:
    screen = Screen()
    out = screen.enter("/speculative")
    assert "only active decoder" in out
    assert "/target or /drafter" in out
    assert screen.session.methods == ("speculative",)


def test_without_the_template_each_line_is_raw_text() -> None:
    screen = Screen(FakePair(["one", "two", "three"]), chat=False)
    screen.enter("Once upon", "a time")
    assert screen.pair.prompts == ["Once upon", "a time"]
    assert "on: a conversation" in screen.enter("/chat")
    screen.enter("hello")
    assert screen.pair.prompts[-1] == [{"role": "user", "content": "hello"}]


def test_a_model_without_chat_template_is_an_error() -> None:
    assert "--no-chat" in Screen(FakePair(template=False)).enter("hello")


class Keys:
    """Lines as they are typed; an exception in the list is raised, and the end of the list is the end of the input."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)

    def __call__(self) -> str:
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


def test_ctrl_c_at_the_prompt_continues_and_ctrl_d_leaves() -> None:
    screen = Screen()
    talk(screen.chat, Keys(KeyboardInterrupt(), "hi"), interactive=True)
    assert len(screen.pair.calls) == 1
    with pytest.raises(KeyboardInterrupt):
        talk(screen.chat, Keys(KeyboardInterrupt(), "hi"))
    talk(screen.chat, Keys("/quit", AssertionError("read after /quit")))


def test_the_manager_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    screen = Screen()
    assert manage(screen.chat, Keys("stat", "start"))
    assert "did you mean start?" in screen.file.getvalue()
    assert not manage(screen.chat, Keys("sweep 2", KeyboardInterrupt(), "exit"))
    assert len(list(tmp_path.iterdir())) == 1
    assert not manage(screen.chat, Keys())


def test_the_chat_continues_if_the_drafters_processes_fail() -> None:
    screen = Screen(FakePair(["half of it", "whole"], stop_at=4))
    screen.pair.error = ConnectionResetError("the drafter's process on cpu:1 died (SIGKILL)")
    screen.session.decode = replace(screen.session.decode, overlap=True)
    out = screen.enter("hi")
    assert screen.pair.recovered == 1
    assert "the drafter's process on cpu:1 died (SIGKILL)" in out
    assert "loading the drafter into this process" in out
    assert screen.session.history[-1][0].text == "whole"
    assert not screen.session.decode.overlap
