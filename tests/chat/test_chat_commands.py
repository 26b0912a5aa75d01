"""The chat's commands, with a scripted pair and without a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.chat import FakePair, Screen
from pdevis.chat.app import handle
from pdevis.chat.commands import COMMANDS, FORGETFUL, VALUES
from pdevis.chat.sweep import MAX_TOKENS, run_sweep
from pdevis.chat.terminal import complete_line
from pdevis.config import DecodeConfig
from pdevis.generation import DecodeStats

SETTINGS = [
    ("/length 7", "decode", "max_new_tokens", 7),
    ("/gamma 6", "decode", "gamma", 6),
    ("/gamma auto", "decode", "gamma", "auto"),
    ("/temperature 0.5", "decode", "temperature", 0.5),
    ("/MODE skip", "draft", "mode", "skip"),
    ("/threshold -2", "draft", "threshold", -2.0),
    ("/window  4", "draft", "window", 4),
]


@pytest.mark.parametrize(("line", "config", "name", "value"), SETTINGS)
def test_a_setting_changes_and_is_shown(line: str, config: str, name: str, value: object) -> None:
    screen = Screen()
    command = line.lower().split()[0]
    assert screen.enter(line) == f"{command[1:]} is {value}\n"
    assert getattr(screen.pair.draft if config == "draft" else screen.session.decode, name) == value
    assert COMMANDS[command[1:]].help in screen.enter(command)


def test_auto_mode_shows_the_mode_in_use() -> None:
    assert "mode is auto (which is parallel here)" in Screen().enter("/mode auto")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/length x", "/length: 'x' must be an integer >= 0"),
        ("/gamma 0", "/gamma: 0 must be an integer >= 1 or 'auto'"),
        ("/gamma 3 4", "/gamma: '3 4' must be an integer >= 1 or 'auto'"),
        ("/mode fast", "/mode: 'fast' must be one of auto, exact, skip, parallel"),
        ("/check often", "/check: 'often' must be one of inline, planned, static"),
        ("/threshold high", "/threshold: 'high' must be a finite number"),
        ("/window 0", "/window: 0 must be an integer >= 1"),
        ("/temperature -1", "/temperature: -1.0 must be a finite number >= 0"),
        ("/sweep 2 x", "/sweep: each gamma: 'x' must be an integer >= 1 or 'auto'"),
        ("/quit now", "/quit takes no argument, got 'now'"),
        ("/save", "/save needs a file name: NAME.json or NAME.md"),
        ("/gama 4", "unknown command /gama; did you mean /gamma?"),
        ("/xyzzy", "unknown command /xyzzy; /help lists them"),
        ("/", "unknown command /; /help lists them"),
    ],
)
def test_a_wrong_command_is_one_line_and_changes_nothing(line: str, message: str) -> None:
    screen = Screen()
    before = (screen.session.decode, screen.pair.draft)
    assert screen.enter(line) == f"{message}\n"
    assert (screen.session.decode, screen.pair.draft) == before
    assert screen.pair.calls == []


def test_help_lists_every_command_and_the_colours() -> None:
    out = Screen().enter("/help")
    for name in COMMANDS:
        assert f"/{name}" in out
    for part in ("/gamma N", "/save FILE", "drafted and accepted", "written by the target itself", "Ctrl-C"):
        assert part in out


def test_quit_leaves_and_two_slashes_are_text() -> None:
    screen = Screen()
    assert handle(screen.chat, "/quit") is False
    screen.enter("//etc is what?")
    assert screen.pair.prompts == [[{"role": "user", "content": "/etc is what?"}]]
    assert screen.enter("", "   ", "/cls") == ""
    for name in ("exit", "bye"):
        assert handle(screen.chat, f"/{name}") is False


def test_clear_forgets_the_conversation_and_says_so() -> None:
    for name in ("/clear", "/reset"):
        screen = Screen(FakePair(["one"]))
        screen.enter("first")
        assert screen.enter(name) == "the conversation is forgotten (/cls clears the screen)\n"
        assert screen.session.messages == []
    assert screen.enter("/?") == screen.enter("/help")


@pytest.mark.parametrize("typed", ["/clar", "/rest", "/undoo", "/trm"])
def test_no_command_that_forgets_is_suggested(typed: str) -> None:
    suggestion = Screen().enter(typed).partition("; ")[2]
    assert not any(f"/{name}" in suggestion for name in (*FORGETFUL, "reset"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/m", ["/mode"]),
        ("/mode p", ["parallel"]),
        ("/thinking ", ["on", "off", "auto", "show", "fold"]),
        ("/set min", ["min_p", "min_new_tokens"]),
        ("/quit ", []),
        ("mode p", []),
        ("/mode p\nx", []),
    ],
)
def test_tab_completes_commands_and_values(text: str, words: list[str]) -> None:
    assert complete_line(text, {name: command.help for name, command in COMMANDS.items()}, VALUES) == words


def test_stats_are_ratios_of_sums() -> None:
    screen = Screen(FakePair(["abcdef", "abc"]))
    assert screen.enter("/stats") == "no answers yet\n"
    out = screen.enter("one", "two", "/stats")
    assert "of the speculative tokens, 6 were drafted and 3 written by the target" in out
    assert "  2 tokens drafted, 1 written by the target" in out
    assert "tokens per round: 3\n" in out
    assert "2 of 4 drafted tokens accepted" in out
    assert "prefill 1.00 s" in out
    assert "ended by eos" in out
    total = screen.session.total("speculative")
    assert total is not None
    assert (total.new_tokens, total.accept_lengths, total.drafted) == (9, [3, 3, 3], 12)
    assert total.tokens_per_second == pytest.approx(20)


def test_the_speedup_compares_the_turns_that_both_answered() -> None:
    screen = Screen(FakePair(["alone", "both", "both"]))
    screen.enter("one", "/target", "two", "/reset")
    both = screen.session.total("speculative", shared_with="target")
    assert both is not None
    assert both.new_tokens == 4
    assert screen.session.total("drafter") is None
    assert "2.00x" in screen.enter("/stats")


def test_sum_of_stats_of_different_speeds() -> None:
    slow = DecodeStats(new_tokens=10, total_seconds=10.0)
    fast = DecodeStats(new_tokens=10, total_seconds=1.0, prefill_seconds=0.5)
    assert DecodeStats.sum([slow, fast]).tokens_per_second == pytest.approx(20 / 10.5)  # not (1 + 20) / 2


def test_the_summary_names_the_length_limit() -> None:
    assert "length limit reached" in Screen(FakePair(["long answer"]), max_new_tokens=3).enter("why?")


def test_save_as_json_and_markdown(tmp_path: Path) -> None:
    screen = Screen(FakePair(["blue …"]))
    assert "no conversation yet" in screen.enter(f"/save {tmp_path / 'a.json'}")
    screen.enter("why?")
    file = tmp_path / "my talk.json"
    assert str(file) in screen.enter(f"/save {file}").replace("\n", "")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["messages"] == [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "blue …"}]
    assert content["turns"][0]["answers"][0]["stats"]["new_tokens"] == 6
    assert content["config"]["gamma"] == 4
    screen.enter(f"/save {tmp_path / 'talk.md'}")
    assert "## User\n\nwhy?\n\n## Model (speculative)\n\nblue …\n" in (tmp_path / "talk.md").read_text(encoding="utf-8")


def test_save_never_overwrites_and_rejects_bad_paths(tmp_path: Path) -> None:
    screen = Screen()
    screen.enter("why?")
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    for path, message in [
        (taken, "already exists"),
        (tmp_path, "already exists"),
        (taken / "x.md", "cannot be written"),
    ]:
        out = screen.enter(f"/save {path}")
        assert message in out
        assert str(path) in out
        assert out.count("\n") == 1
    assert taken.read_text() == "mine"
    assert len(screen.session.messages) == 2


def test_save_creates_the_folder_and_reports_it(tmp_path: Path) -> None:
    screen = Screen()
    path = tmp_path / "new" / "x.md"
    assert screen.enter("why?", f"/save {path}").splitlines()[-2:] == [
        f"created the folder {path.parent}",
        f"saved: {path}",
    ]
    assert path.is_file()
    assert "created" not in screen.enter(f"/save {path.with_name('y.md')}")


def test_sweep_prints_a_table_and_saves_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    screen = Screen()
    screen.enter("why?")
    prompt = screen.pair.calls[0][1]
    out = screen.enter("/sweep 2 5 2")
    (plot,) = tmp_path.glob("pdevis-sweep-*.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.name in out.replace("\n", "")
    for part in ("target alone", "2.00x (2.00 to 2.00)", "auto", "50 %", "tokens per round"):
        assert part in out
    calls = screen.pair.calls[3:]  # after the answer and the warm-up
    order = [(method, config.gamma if method == "speculative" else None) for method, _, config in calls]
    gammas = (2, 5, screen.session.decode.gamma, "auto")
    one_pass = [("target", None), *(("speculative", gamma) for gamma in gammas)]
    assert order == [*one_pass, *reversed(one_pass)]
    assert all(ids == prompt for _, ids, _ in calls)
    assert len(screen.session.messages) == 2


def test_sweep_without_a_prompt_takes_its_own_and_limits_its_length() -> None:
    pair = FakePair()
    rows = run_sweep(pair, [1, 2], config=DecodeConfig(max_new_tokens=500), gammas=[3])
    assert [row.gamma for row in rows] == [None, 3]
    assert {config.max_new_tokens for _, _, config in pair.calls[2:]} == {MAX_TOKENS}
    assert rows[1].stats.new_tokens == 10


def test_a_stopped_sweep_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "sweep stopped" in Screen(FakePair(stop_at=1)).enter("/sweep 2")
    assert list(tmp_path.iterdir()) == []
