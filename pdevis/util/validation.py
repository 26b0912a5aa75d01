"""Checks of what a user can get wrong: each raises `ValueError` that names the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real


def check_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def check_integer(name: str, value: object, least: int, otherwise: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} = {value!r}: must be an integer >= {least}{otherwise}")


def check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most:
        bounds = [f">= {least:g}"] * (least > -math.inf) + [f"<= {most:g}"] * (most < math.inf)
        raise ValueError(
            f"{name} = {value!r}: must be a finite number" + (" " + " and ".join(bounds) if bounds else "")
        )


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: must be True or False")
