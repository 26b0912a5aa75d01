"""Streamed answers on a terminal: lines break between words, and nothing is lost."""

from __future__ import annotations

import itertools
import random
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from pdevis.chat.screen.word_wrap import WordWrap


def streamed(pieces: list[str], width: int) -> str:
    file = StringIO()
    wrap = WordWrap(Console(file=file, force_terminal=True, width=width, color_system=None, highlight=False))
    for i, piece in enumerate(pieces):
        wrap.add(piece, "bold" if i % 2 else "")
    wrap.flush()
    return file.getvalue()


def pieces_of(text: str, seed: int) -> list[str]:
    """Return the text in random pieces, as tokens are."""
    cuts = sorted({0, len(text), *random.Random(seed).choices(range(len(text)), k=len(text) // 3)})
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


TEXTS = [
    "Words are never broken at the edge of the screen while they are written, whatever the pieces are.",
    "a list:\n\n- one item that is long enough to need a second line\n- another\n\n    code = 1  # kept\n",
    "An exceptionallylongwordthatdoesnotfitonanyline is broken.",
    "emoji 🙂🙂 and naïve café, then 你好世界你好世界你好世界你好世界, and more words after it",
]


@pytest.mark.parametrize("width", [20, 33])
@pytest.mark.parametrize("text", TEXTS)
def test_lines_fit_and_words_stay_whole(text: str, width: int) -> None:
    for seed in range(20):
        shown = streamed(pieces_of(text, seed), width)
        lines = shown.split("\n")
        assert all(cell_len(line.rstrip(" ")) <= width for line in lines), shown
        assert "".join(shown.split()) == "".join(text.split())
        for word in text.split():
            if cell_len(word) < width and word.isascii():
                assert word in shown.split() or any(word in part for part in shown.split()), word
        assert shown == streamed([text], width), "the pieces make no difference"


def test_lines_of_the_text_are_kept() -> None:
    assert streamed(["one\n", "\ntwo  three"], 40) == "one\n\ntwo  three"
    assert streamed(["if x:\n  ", "  return 1\n"], 20) == "if x:\n    return 1\n"
    assert streamed(["four four four four  ", "next"], 19) == "four four four four\nnext"
