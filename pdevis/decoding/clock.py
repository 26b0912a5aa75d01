"""Wall-clock time of a decode loop, split into the phases of its rounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pdevis.generation import Round


class Clock:
    """Measures seconds with every CUDA device in use synchronized at both ends; time of the consumer is left out."""

    def __init__(self, *devices: torch.device) -> None:
        self.devices = {device for device in devices if device.type == "cuda"}
        self._lap_start = self._now()

    @contextmanager
    def phase(self, round: Round, name: str) -> Iterator[None]:
        """Set `round.<name>_seconds` to the time that the block takes."""
        start = self._now()
        try:
            yield
        finally:
            setattr(round, f"{name}_seconds", self._now() - start)

    def lap(self) -> float:
        """Seconds since the last lap, or since the clock was made."""
        now = self._now()
        seconds, self._lap_start = now - self._lap_start, now
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, in which the consumer works, out of the current lap."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._lap_start += time.perf_counter() - start

    def _now(self) -> float:
        for device in self.devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()
