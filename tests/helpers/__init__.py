"""Helpers that the tests share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository
HANG_SECONDS = 300.0  # longest wait for an event: only a hang takes longer, on a busy machine too
