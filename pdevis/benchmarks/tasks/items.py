"""Benchmark files: a JSON array or JSON lines; each item is checked, and a broken one is named by file and number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pdevis.util.files import parse_json, read_text

Item = dict[str, Any]
FORMS = "a file holds one JSON array, or one JSON object per line"


def load_items(path: Path | str, check: Callable[[Item], None], k: int | None = None) -> list[Item]:
    """Load the first k items (None: all).

    All items are checked, those after k too, so that a broken file is noticed on its first use.

    Args:
        check: raises ValueError for an invalid item.

    Raises:
        ValueError: names the file, the item (JSON array) or line (JSON lines), what is wrong and what is allowed.
    """
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ValueError(f"k = {k!r}: must be an integer >= 1")
    items: list[Item] = []
    locations: dict[str, str] = {}
    for location, item in _numbered(Path(path)):
        try:
            if not isinstance(item, dict):
                raise ValueError(f"is {_kind(item)}: must be a JSON object")
            name = _question_id(item)
            if name in locations:
                raise ValueError(f"question_id = {name} is also that of {locations[name]}: must be unique")
            check(item)
        except ValueError as error:
            raise ValueError(f"{path}: {location}: {error}") from None
        locations[name] = location
        items.append(item)
    if not items:
        raise ValueError(f"{path}: holds no items; {FORMS}")
    return items[:k]


def text(item: Item, key: str) -> str:
    """The string under a key. Raises ValueError if it does not exist, is empty, or is not a string."""
    value = present(item, key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} = {shortened(value)}: must be a string that is not empty")
    return value


def one_of(item: Item, key: str, allowed: Iterable[str]) -> str:
    """The value under a key. Raises ValueError if it is not one of those allowed."""
    value, allowed = present(item, key), tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{key} = {shortened(value)}: must be one of {', '.join(allowed)}")
    return value


def texts(item: Item, key: str) -> list[str]:
    """The list of strings under a key, none of them empty. Raises ValueError for anything else."""
    value = present(item, key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"{key} = {shortened(value)}: must be a list of strings that are not empty")
    return value


def present(item: Item, key: str) -> Any:
    """The value under a key. Raises ValueError if it does not exist."""
    if key not in item:
        raise ValueError(f"has no {key}: its keys are {', '.join(map(str, item)) or 'none'}")
    return item[key]


def shortened(value: Any, max_length: int = 60) -> str:
    """The value as Python shows it, truncated."""
    shown = repr(value)
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def _question_id(item: Item) -> str:
    value = present(item, "question_id")
    if not isinstance(value, (int, str)) or isinstance(value, bool) or value == "":
        raise ValueError(f"question_id = {shortened(value)}: must be an integer or a string")
    return repr(value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _numbered(path: Path) -> Iterator[tuple[str, Any]]:
    """Parse a file into ("item N" or "line N", value) of every item."""
    content = _read(path)
    if content.lstrip().startswith("["):
        try:
            items = parse_json(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); {FORMS}") from None
        yield from ((f"item {number}", item) for number, item in enumerate(items, 1))
        return
    # not splitlines: other line ends of Unicode may occur inside a JSON string
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number}: not valid JSON ({error.msg}); {FORMS}") from None


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder; must be a file of benchmark items") from None
