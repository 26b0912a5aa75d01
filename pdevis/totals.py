"""Statistics of several generations as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from pdevis.config import DecodeStats


def sum_stats(parts: Iterable[DecodeStats]) -> DecodeStats:
    """Counts and seconds of several generations added up (lists joined): its rates are ratios of sums."""
    total = DecodeStats()
    added = [item.name for item in fields(DecodeStats) if item.name not in ("method", "mode", "stop_reason")]
    for part in parts:
        total = replace(part, **{name: getattr(total, name) + getattr(part, name) for name in added})
    return total
