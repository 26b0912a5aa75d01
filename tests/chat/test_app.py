"""appInference.py from flags to exit code, in pipes: one-shot answers, JSON, and lines from stdin."""

from __future__ import annotations

import io
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.chat import FakePair, Screen
from pdevis.chat.app import add_chat_flags, run_chat
from pdevis.chat.terminal import history_path, make_history
from pdevis.cli import Parser, add_draft_flags, add_model_flags, run_main
from pdevis.config import DraftConfig
from pdevis.controls.decode_flags import add_decode_flags


class Loader:
    """A replacement of `load_pair` that records its arguments and reports progress."""

    def __init__(self, pair: FakePair) -> None:
        self.pair = pair
        self.arguments: dict[str, Any] | None = None

    def __call__(self, on_progress: Callable[[str], None], draft: DraftConfig, **arguments: Any) -> FakePair:
        on_progress("loading [big]")
        self.arguments = arguments
        self.pair.draft = draft
        return self.pair


class Script:
    """Run the parser and `run_chat` as appInference.py does, with a scripted pair."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch
        self.loader = Loader(FakePair())
        monkeypatch.setattr("pdevis.pair.load_pair", self.loader)

    def __call__(self, *argv: str, stdin: str = "") -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        parser = Parser()
        add_chat_flags(parser)
        add_model_flags(parser, target_device="--device_target", draft_device="--device_drafter")
        add_draft_flags(parser)
        add_decode_flags(parser)
        code = run_main(run_chat, parser.parse_args(argv))
        streams = self.capsys.readouterr()
        assert "\x1b" not in streams.out + streams.err
        return code, streams.out, streams.err


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(capsys, monkeypatch)


def test_a_prompt_is_answered_once(script: Script) -> None:
    script.loader.pair.replies = ["line\tone\nline two " + 100 * "x"]
    code, out, err = script("--prompt", "why?", "--gamma", "3", "--device-drafter", "cpu")
    assert (code, out) == (0, "line\tone\nline two " + 100 * "x" + "\n")
    assert err.splitlines()[0] == "loading [big]"
    assert "target big (float32, cpu) · drafter small (int8, cpu) · mode parallel" in err
    assert "tok/s" in err
    (call,) = script.loader.pair.calls
    assert (call[0], call[2].gamma) == ("speculative", 3)
    assert script.loader.pair.prompts[0] == [{"role": "user", "content": "why?"}]
    assert script.loader.arguments is not None
    assert script.loader.arguments["draft_device"] == "cpu"


def test_json_is_one_object(script: Script) -> None:
    script.loader.pair.replies = ["blü"]
    code, out, _ = script("--prompt", "why?", "--json", "--draft-mode", "skip", "--temperature", "0.5", "--seed", "3")
    assert (code, out.count("\n")) == (0, 1)
    result = json.loads(out)
    assert set(result) == {"text", "ids", "stats", "config"}
    assert (result["text"], result["ids"]) == ("blü", [98, 108, 252])
    assert result["stats"]["new_tokens"] == 3
    assert result["stats"]["tokens_per_second"] == pytest.approx(20)
    config = result["config"]
    assert (config["mode"], config["draft_mode"], config["temperature"], config["seed"]) == ("skip", "skip", 0.5, 3)
    assert (config["target"], config["gamma"], config["calibrate"], config["chat"]) == ("big", 4, True, True)


def test_thoughts_are_apart_in_json_and_in_a_pipe(script: Script) -> None:
    reply = "<think>Hm</think>\n\n**B**"
    script.loader.pair.replies = [reply] * 4
    code, out, _ = script("--prompt", "why?", "--json")
    result = json.loads(out)
    assert (code, result["text"], result["answer_text"]) == (0, reply, "**B**")
    assert (result["reasoning_text"], result["reasoning_tokens"]) == ("Hm", len("<think>Hm</think>"))
    _, out, err = script("--prompt", "why?")
    assert out == "**B**\n"
    assert "thought: 17 tokens, 0.9 s\n" in err
    _, out, err = script("--prompt", "why?", "--thoughts", "show", "--plain")
    assert out == f"{reply}\n"
    assert script(stdin="why?\n")[1].splitlines()[1:3] == ["thought: 17 tokens, 0.9 s", "**B**"]


def test_the_prompt_comes_from_stdin_or_a_file(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a file\n", encoding="utf-8")
    script("--prompt", "-", "--no-chat", stdin="two\nlines\n")
    script("--prompt-file", str(file), "--no_chat")
    assert script.loader.pair.prompts == ["two\nlines", "from a file"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt", ""], "--prompt: the text is empty"),
        (["--prompt", " \n"], "--prompt: the text is empty"),
        (["--prompt", "-"], "--prompt -: the text is empty"),
        (["--prompt", "\udcff"], "--prompt: must be UTF-8 text"),
        (["--prompt_file", "nowhere.txt"], "--prompt_file nowhere.txt: cannot be read: No such file"),
        (["--prompt_file", "."], "--prompt_file .: cannot be read: Is a directory"),
        (["--json"], "--json needs --prompt TEXT"),
        (["--draft_mode", "skip", "--no-calibrate"], "check = 'planned'"),
    ],
)
def test_mistakes_are_found_before_the_models_are_loaded(script: Script, argv: list[str], message: str) -> None:
    code, out, err = script(*argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert script.loader.arguments is None


def test_a_file_that_is_not_text(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"\x89PNG")
    code, _, err = script("--prompt_file", str(file))
    assert code == 2
    assert "must be UTF-8 text" in err


def test_a_prompt_that_is_too_long(script: Script) -> None:
    script.loader.pair.context_length = 10
    code, out, err = script("--prompt", "x" * 20, "--json")
    assert (code, out) == (2, "")
    assert "error: the prompt is too long: 23 tokens, and the models' context holds 10" in err


def test_an_interrupted_one_shot_answer(script: Script) -> None:
    script.loader.pair.stop_at = 2
    code, out, _ = script("--prompt", "why?")
    assert (code, out) == (130, "he\n")


def test_prompt_and_manager_exclude_each_other(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        script("--prompt", "x", "--manager")
    assert leaving.value.code == 2
    assert "--manager: not allowed with --prompt" in capsys.readouterr().err.replace("argument ", "")


def test_lines_from_a_pipe(script: Script) -> None:
    script.loader.pair.replies = ["one", "two"]
    code, out, err = script(stdin="first\n/gamma 0\n\nsecond")
    assert code == 0
    assert out.splitlines()[1] == "one"
    assert out.splitlines()[3:5] == ["/gamma: 0 must be an integer >= 1 or 'auto'", "two"]
    assert err == "loading [big]\n"
    assert script("--no-chat", stdin="")[0] == 0


def test_the_script_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "appInference.py"))
    monkeypatch.setattr("pdevis.pair.load_pair", lambda *args, **settings: (args, settings))
    assert script["load_pair"]("big", draft_device="cpu") == (("big",), {"draft_device": "cpu"})
    monkeypatch.setattr("pdevis.pair.load_pair", Loader(FakePair(["blue"])))
    assert script["main"](["--prompt", "why?", "--device-target", "cpu", "--device_drafter", "cpu"]) == 0
    assert capsys.readouterr().out == "blue\n"
    for argv, code in [(["--help"], 0), (["--draft_devices", "cpu"], 2), (["--gamma", "0"], 2)]:
        with pytest.raises(SystemExit) as leaving:
            script["main"](argv)
        assert leaving.value.code == code
    text = capsys.readouterr().out
    for flag in ("--device_target", "--prompt", "--json", "--no-chat", "--manager", "--draft_mode", "--length"):
        assert flag in text


def test_the_manager_in_a_pipe(script: Script) -> None:
    code, out, _ = script("--manager", stdin="start\nhi\n")
    assert code == 0
    assert "start (talk to the models) · sweep" in out
    assert "hello\n" in out
    calls = len(script.loader.pair.calls)
    assert script("--manager", stdin="exit\nhi\n")[0] == 0
    assert len(script.loader.pair.calls) == calls


def test_the_history_is_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    assert history_path() == tmp_path / "cache" / "chat_history"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "file"))
    assert history_path() is None


def test_a_history_on_a_full_disk_is_ignored(tmp_path: Path) -> None:
    history = make_history(tmp_path / "missing" / "history")
    assert list(history.load_history_strings()) == []
    history.append_string("hello")
    assert history.get_strings() == ["hello"]


def test_a_failing_disk_costs_an_answer_and_not_the_conversation() -> None:
    screen = Screen()
    screen.enter("first")
    screen.pair.stop_at, screen.pair.error = 2, OSError(28, "No space left on device", "trace.jsonl")
    assert "No space left on device" in screen.enter("second")
    screen.pair.stop_at = None
    screen.enter("third")
    assert [turn.user for turn in screen.session.turns] == ["first", "third"]
