"""The order in which alternatives are measured: interleaved, so that a machine that warms up favours none of them."""

from __future__ import annotations


def interleaved_order(count: int, pass_number: int) -> list[int]:
    """Return the order of `count` alternatives in a pass: reversed every second time, rotated by one every two."""
    shift = pass_number // 2 % count
    order = [*range(shift, count), *range(shift)]
    return order if pass_number % 2 == 0 else order[::-1]
