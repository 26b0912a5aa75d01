"""Progress of long steps: lines for a pipe or file, a bar for a line that is replaced."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from pdevis.loading.hub import without_progress_bars
from pdevis.loading.progress_bar import ProgressBar
from pdevis.util.console import progress_on_stderr


class ReplacedLine(list):
    """A callback that shows each text instead of the one before."""

    updates_in_place = True
    __call__ = list.append


def test_a_pipe_gets_a_line_per_quarter() -> None:
    lines: list[str] = []
    bar = ProgressBar(lines.append, "reading", total=8 << 20)
    for _ in range(64):
        bar.advance(1 << 17)
    assert lines == [f"reading: {done} of 8 MiB" for done in (2, 4, 6, 8)]


def test_a_total_that_is_too_small_ends_at_the_total() -> None:
    lines: list[str] = []
    bar = ProgressBar(lines.append, "reading", total=(3 << 20) + 1)
    bar.show(100 << 20)
    bar.show(200 << 20)
    assert lines == ["reading: 4 of 4 MiB"]


def test_a_line_that_is_replaced_gets_a_bar() -> None:
    texts = ReplacedLine()
    bar = ProgressBar(texts, "reading", total=200 << 20)
    for done in range(0, 201):
        bar.show(done << 20)
    assert len(texts) == 100
    assert texts[0] == f"reading [{'.' * 24}] 2 of 200 MiB"
    assert texts[49] == f"reading [{'#' * 12}{'.' * 12}] 100 of 200 MiB"
    assert texts[-1] == f"reading [{'#' * 24}] 200 of 200 MiB"


def test_progress_in_a_pipe_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_on_stderr("loading") as on_progress:
        assert not getattr(on_progress, "updates_in_place", False)
        on_progress("first [stage]")
        on_progress("second")
    assert sys.stderr.getvalue() == "first [stage]\nsecond\n"


def test_progress_on_a_terminal_replaces_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_on_stderr("loading") as on_progress:
        assert on_progress.updates_in_place
        on_progress("a [stage]")
    assert "a [stage]" in sys.stderr.getvalue()


def test_bars_of_libraries_are_hidden_and_other_lines_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    with without_progress_bars():
        for _ in tqdm(range(3), desc="theirs", file=sys.stderr):
            pass
        print("a warning", file=sys.stderr)
        print("another", file=sys.stderr)
    print("after", file=sys.stderr)
    assert capsys.readouterr().err == "a warning\nanother\nafter\n"
