"""argparse types: functions that turn the text of a flag into a value, or raise an error that says what is allowed.

`positive_int` is such a type itself; `comma_list`, `choice`, `bounded_float` and `settings_field` return one.

    parser.add_argument("--devices", type=comma_list(positive_int))
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pdevis.config import AUTO


def one_line(message: object) -> str:
    """The message without line breaks and repeated spaces."""
    return " ".join(str(message).split())


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely a misspelling of; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def parse_value(config: type, name: str, convert: Callable[[str], Any], text: str) -> Any:
    """Turn `text` into a value for the field `name` of a settings dataclass.

    Raises:
        ValueError: the dataclass refuses the value; the message says what is allowed (the caller names the flag).
    """
    try:
        value = convert(text)
    except ValueError:
        value = text  # the dataclass's error says what is allowed; the conversion's does not
    try:
        config(**{name: value})
    except ValueError as error:
        _, _, reason = str(error).partition(" = ")
        raise ValueError(reason.replace(": must", " must", 1)) from None
    return value


def gamma_value(text: str) -> int | str:
    """γ as written in flags and commands: an integer or "auto"."""
    return text if text == AUTO else int(text)


def positive_int(text: str) -> int:
    """An integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= 1")
    return int(text)


def settings_field(config: type, name: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argparse type for the field `name` of a settings dataclass, which checks the value."""

    def parse(text: str) -> Any:
        try:
            return parse_value(config, name, convert, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def comma_list(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return an argparse type for a comma list without duplicates, each element parsed by `convert`."""

    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(convert(part.strip()) for part in text.split(","))
        duplicates = [value for i, value in enumerate(values) if value in values[:i]]
        if duplicates:
            raise argparse.ArgumentTypeError(f"{text!r} names {duplicates[0]} twice")
        return values

    return parse


def id_numbers(text: str) -> dict[int, float]:
    """Parse numbers for ids, as in "50:-2,17:1.5"."""
    pairs = [part.partition(":") for part in text.split(",")]
    return {int(token): float(number) for token, _, number in pairs}


def choice(*allowed: str) -> Callable[[str], str]:
    """Return an argparse type for one of the allowed words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} must be among {', '.join(allowed)}")
        return text

    return parse


def bounded_float(
    minimum: float = 0.0, maximum: float = float("inf"), exclusive: bool = False
) -> Callable[[str], float]:
    """Return an argparse type for a finite number in [minimum, maximum]; `exclusive`: greater than the minimum."""
    bounds = f"{'>' if exclusive else '>='} {minimum:g}" + (f" and <= {maximum:g}" if maximum < 1e300 else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        below = value <= minimum if exclusive else not value >= minimum
        if below or value != value or value > maximum or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} must be a number {bounds}")
        return value

    return parse
