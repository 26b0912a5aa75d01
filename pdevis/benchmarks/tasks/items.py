"""Reading benchmark files: a JSON array or JSON lines, each item checked, the broken one named by file and number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Item = dict[str, Any]
FORMS = "a file holds one JSON array, or one JSON object per line"


def load_items(path: Path | str, check: Callable[[Item], None], k: int | None = None) -> list[Item]:
    """The first k items (None: all); `check` raises ValueError for an item that is not as it must be.

    All items are checked, those beyond k too, so that a broken file is noticed on its first use.

    Raises:
        ValueError: naming the file, the item (JSON array) or line (JSON lines), what is wrong and what is allowed.
    """
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ValueError(f"k = {k!r}: must be an integer >= 1")
    items: list[Item] = []
    places: dict[str, str] = {}
    for place, item in _numbered(Path(path)):
        try:
            if not isinstance(item, dict):
                raise ValueError(f"is {_kind(item)}: must be a JSON object")
            name = _question_id(item)
            if name in places:
                raise ValueError(f"question_id = {name} is also that of {places[name]}: must be unique")
            check(item)
        except ValueError as error:
            raise ValueError(f"{path}: {place}: {error}") from None
        places[name] = place
        items.append(item)
    if not items:
        raise ValueError(f"{path}: holds no items; {FORMS}")
    return items[:k]


def text(item: Item, key: str) -> str:
    """The text under a key. Raises ValueError where it is missing, empty, or no text."""
    value = present(item, key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} = {shortened(value)}: must be a string that is not empty")
    return value


def one_of(item: Item, key: str, allowed: Iterable[str]) -> str:
    """The value under a key. Raises ValueError where it is not one of those allowed."""
    value, allowed = present(item, key), tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{key} = {shortened(value)}: must be one of {', '.join(allowed)}")
    return value


def texts(item: Item, key: str) -> list[str]:
    """A list of at least one text. Raises ValueError for anything else."""
    value = present(item, key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        raise ValueError(f"{key} = {shortened(value)}: must be a list of texts that are not empty")
    return value


def present(item: Item, key: str) -> Any:
    if key not in item:
        raise ValueError(f"has no {key}: its keys are {', '.join(map(str, item)) or 'none'}")
    return item[key]


def shortened(value: Any, most: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _question_id(item: Item) -> str:
    value = present(item, "question_id")
    if not isinstance(value, (int, str)) or isinstance(value, bool) or value == "":
        raise ValueError(f"question_id = {shortened(value)}: must be an integer or a text")
    return repr(value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _numbered(path: Path) -> Iterator[tuple[str, Any]]:
    content = _read(path)
    if content.lstrip().startswith("["):
        try:
            items = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); {FORMS}") from None
        yield from ((f"item {number}", item) for number, item in enumerate(items, 1))
        return
    # Not splitlines: the characters that Unicode counts as line ends may stand inside a JSON text.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number}: not valid JSON ({error.msg}); {FORMS}") from None


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; must be a file of benchmark items") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line}: not UTF-8 text") from None
