"""Texts that users type, turned into values: numbers, γ, fields of the settings dataclasses, near misses of a word."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pdevis.config import AUTO


def one_line(message: object) -> str:
    """The message without line breaks and doubled spaces."""
    return " ".join(str(message).split())


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely a misspelling of."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def parse_value(config: type, name: str, convert: Callable[[str], Any], text: str) -> Any:
    """Turn `text` into a value for the field `name` of a settings dataclass.

    Raises:
        ValueError: the dataclass refuses the value; the message says what is allowed (the caller names the flag).
    """
    try:
        value = convert(text)
    except ValueError:
        value = text  # the dataclass says what would be right, which the conversion cannot
    try:
        config(**{name: value})
    except ValueError as error:
        _, _, reason = str(error).partition(" = ")
        raise ValueError(reason.replace(": must", " must", 1)) from None
    return value


def gamma_value(text: str) -> int | str:
    """γ as it is written in flags and commands: a number, or "auto"."""
    return text if text == AUTO else int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= 1")
    return int(text)


def checked(config: type, name: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parse_value(config, name, convert, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of comma lists without doubles, each element parsed by `convert`."""

    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(convert(part.strip()) for part in text.split(","))
        doubled = [value for place, value in enumerate(values) if value in values[:place]]
        if doubled:
            raise argparse.ArgumentTypeError(f"{text!r} names {doubled[0]} twice")
        return values

    return parse


def one_of(*allowed: str) -> Callable[[str], str]:
    """A parser of one word among those allowed."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} must be among {', '.join(allowed)}")
        return text

    return parse


def number(least: float = 0.0, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """A parser of numbers from `least`, or `above` it, to `most`."""
    bounds = f"{'>' if above else '>='} {least:g}" + (f" and <= {most:g}" if most < 1e300 else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (least < value or (value == least and not above)) or value > most or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} must be a number {bounds}")
        return value

    return parse
