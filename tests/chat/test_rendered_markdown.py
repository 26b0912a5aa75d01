"""Markdown that is rendered while it arrives: on the screen of a terminal, nothing is lost and nothing else erased."""

from __future__ import annotations

import itertools
import random
import signal
from collections import Counter

import pytest
from rich.cells import cell_len

from helpers.chat import FakePair, Screen, Terminal
from pdevis.chat.screen.answer_display import DisplaySettings
from pdevis.chat.screen.rendered_markdown import RenderedMarkdown, delayed_interrupt, find_blocks

TABLE = """| name | 描述 | emoji |
|---|---|:-:|
| apple | 苹果是一种常见的水果，味道甜美 | 🍎 |
| averyverylongwordthatdoesnotfitintoacolumnofanarrowscreenatall | 梨 | 🍐 |
"""
CODE = """```python
def price(fruit):  # 注释

    return {"apple": 1.2, "pear": 10.0, "and a line": "that is longer than the sixty columns of a screen"}[fruit]
```
"""
BLOCKS = [
    "# Fruit 水果\n",
    "Here is **what you need** to know about `fruit`, in a paragraph of *several* rows, with an emoji 🙂:\n",
    TABLE,
    CODE,
    "1. First with a [link](https://example.org/some/address)\n2. Second\n   - nested 🙂\n\n3. Third\n",
    "- one\n- two\n",
    "> A quote of\n> two lines\n",
    "A plain paragraph 你好世界你好世界你好世界你好世界你好世界你好世界你好世界 that is long enough for two rows.\n",
    "Plain,\nin two lines.\n",
    "See <b>this</b> and ![image](https://example.org/a.png)\n",
    "<div>\nhtml\n</div>\n",
    "[1]: https://example.org/definition\n",
    "~~~\n```\ncode 2\n~~~\n",
]
BEFORE = "the user's line"


def show(pieces: list[str], columns: int, height: int) -> Terminal:
    terminal = Terminal(columns, height)
    terminal.write(f"{BEFORE}\n")
    markdown = RenderedMarkdown(terminal.console())
    for i, piece in enumerate(pieces):
        markdown.add(piece, "green" if i % 2 else "bold")
    markdown.finish()
    if markdown.column:
        terminal.write("\n")
    return terminal


def pieces_of(text: str, r: random.Random) -> list[str]:
    cuts = sorted({0, len(text), *r.choices(range(len(text)), k=len(text) // 3)})
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def letters(text: str) -> Counter[str]:
    return Counter(letter for letter in text if letter.isalnum())


@pytest.mark.parametrize("columns", [60, 100])
def test_documents_in_random_pieces(columns: int) -> None:
    for seed in range(40):
        r = random.Random(seed)
        text = "\n".join(r.sample(BLOCKS, r.randrange(1, 6)))
        whole = show([text], columns, 200)
        assert show(pieces_of(text, r), columns, 200).text == whole.text, (seed, text)
        low = show(pieces_of(text, r), columns, r.choice([4, 8, 15]))
        for terminal in (whole, low):
            assert terminal.rows[0] == BEFORE
            lost = letters(text.replace("```python", "")) - letters(terminal.text)
            assert not lost, (seed, text, terminal.text)
            assert max(map(cell_len, terminal.rows)) <= columns
            assert terminal.cursor[1] == 0


@pytest.mark.parametrize("columns", [60, 100])
def test_each_block_is_rendered_when_it_is_complete(columns: int) -> None:
    terminal = Terminal(columns, 50)
    markdown = RenderedMarkdown(terminal.console())
    markdown.add(f"{BLOCKS[1]}\n")
    assert "**what you need**" in terminal.text
    markdown.add(f"{TABLE}\n")
    assert "know about fruit" in terminal.text
    assert "**" not in terminal.text
    assert "|---|" in terminal.text
    markdown.add("Next")
    assert "|---|" in terminal.text, "the line has not ended: it may belong to the table"
    markdown.add(" line\n\n")
    assert "|---|" not in terminal.text
    assert "───" in terminal.text
    row = next(row for row in terminal.rows if "苹果" in row)
    assert cell_len(row) <= columns
    markdown.add(CODE)
    assert "```python" in terminal.text
    markdown.finish()
    assert "```" not in terminal.text
    assert terminal.text.count("Next line") == 1
    assert "\n\n\n" not in terminal.text, "one blank line between blocks"


def test_a_block_that_is_taller_than_the_screen_stays_and_the_next_is_rendered() -> None:
    code = "".join(f"line {i}\n" for i in range(30))
    text = f"```\n{code}```\n\nThe **end** of it.\n"
    terminal = show(pieces_of(text, random.Random(0)), 60, 10)
    assert f"{BEFORE}\n```\n{code}```\n\nThe end of it.\n" == terminal.text


def test_a_screen_that_changes_its_size_keeps_the_text() -> None:
    terminal = Terminal(60, 20)
    console = terminal.console()
    markdown = RenderedMarkdown(console)
    markdown.add("Some **bold** text.\n")
    console.width = 50
    markdown.finish()
    assert terminal.text == "Some **bold** text.\n"


def test_plain_paragraphs_keep_the_colours_of_their_tokens() -> None:
    terminal = Terminal(60, 20)
    written: list[str] = []
    terminal.write = lambda text: written.append(text) or len(text)
    console = terminal.console()
    console._color_system = 1  # standard colours
    markdown = RenderedMarkdown(console)
    for word in ("drafted ", "words.\n\n", "2 < 3, \\( x_1 * y \\) &amp; more."):
        markdown.add(word, "green")
    markdown.finish()
    out = "".join(written)
    assert "\x1b[2K" not in out, "nothing is erased"
    assert "\x1b[32mdrafted" in out
    assert "\\(" in out


def test_blocks_of_a_text() -> None:
    text = "# A\nb\n- c\n\n- d\n\n[1]: http://e\n\n    f\n"
    assert [(block.first, block.last, block.is_plain) for block in find_blocks(text)] == [
        (0, 1, False),
        (1, 2, True),
        (2, 6, False),
        (6, 7, True),
        (8, 9, False),
    ]


def test_control_characters_of_entities_are_not_written() -> None:
    assert "\x1b" not in show(["**bold** &#27;[2J &#x9b;2J\n"], 60, 20).getvalue()


def test_ctrl_c_waits_for_a_redraw() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with delayed_interrupt():
            signal.raise_signal(signal.SIGINT)
            steps.append("redrawn")
        steps.append("not reached")
    assert steps == ["redrawn"]


@pytest.mark.parametrize(("plain", "shown"), [(False, "A bold word"), (True, "A **bold** word")])
def test_plain_answers_stay_as_they_are(plain: bool, shown: str) -> None:
    screen = Screen(FakePair(["A **bold** word"]), terminal=Terminal(80, 24), display=DisplaySettings(plain=plain))
    assert screen.enter("why?").startswith(f"{shown}\n15 tokens")


def test_nothing_is_rendered_in_a_pipe() -> None:
    assert Screen(FakePair(["A **bold** word\n\n- x"])).enter("why?").startswith("A **bold** word\n\n- x\n20 tokens")


def test_ctrl_c_while_the_end_of_an_answer_is_shown_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(FakePair(["A **bold** word"]), terminal=Terminal(80, 24))
    finish = RenderedMarkdown.finish

    def interrupt(markdown: RenderedMarkdown) -> None:
        monkeypatch.setattr(RenderedMarkdown, "finish", finish)
        raise KeyboardInterrupt

    monkeypatch.setattr(RenderedMarkdown, "finish", interrupt)
    assert screen.enter("why?") == "A bold word\n"
    assert screen.session.messages[-1]["content"] == "A **bold** word"


def test_ctrl_c_keeps_what_was_written() -> None:
    screen = Screen(FakePair(["A **bold** word and `code`"], stop_at=18), terminal=Terminal(80, 24))
    assert screen.enter("why?").startswith("A bold word an\n18 tokens")
    assert screen.session.messages[-1]["content"] == "A **bold** word an"
    screen.pair.stop_at, screen.pair.replies = None, ["A *whole* answer"]
    assert "A whole answer\n16 tokens" in screen.enter("/retry")
    assert screen.session.messages[-1]["content"] == "A *whole* answer"
