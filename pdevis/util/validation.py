"""Checks of user input, each raising `ValueError` with the value and what is allowed, and one-line errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Integral, Real


def check_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def check_integer(name: str, value: object, minimum: int, alternative: str = "") -> None:
    """Raise ValueError unless `value` is an integer >= `minimum`.

    Args:
        alternative: another allowed value, which the caller has ruled out already; only the message names it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        allowed = f"an integer >= {minimum}" + (f" or {alternative!r}" if alternative else "")
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_number(name: str, value: object, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number between the bounds, which are allowed themselves."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not minimum <= value <= maximum:
        bounds = [f">= {minimum:g}"] * (minimum > -math.inf) + [f"<= {maximum:g}"] * (maximum < math.inf)
        allowed = f"a finite number {' and '.join(bounds)}".rstrip()
        raise ValueError(f"{name} = {value!r}: must be {allowed}")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: must be True or False")


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless `value` is an instance of a settings class."""
    if not isinstance(value, kind):
        example = f", as {kind.__name__}(**{name}) makes of it" if isinstance(value, dict) else ""
        raise ValueError(f"{name} = {value!r}: must be a {kind.__name__}{example}")


class DraftingWarning(UserWarning):
    """A problem of drafting that costs speed and leaves the text as it is; scripts print it on one line."""


class ModelLoadError(ValueError):
    """A model, tokenizer or device that is not available; the message is one line that says what to do."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and the errors that led to it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a final full stop; without a message, its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
