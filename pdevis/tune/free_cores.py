"""ThreadChoice: one thread for each core that other programs leave.

Between two products each thread of torch waits for the others. If another program takes turns with one of them on its
core, all wait, and two threads on two cores become slower than one (tools/bench_waiting.py). So before each answer the
chat looks at what other programs have used since the last one, and sets the number of threads, which the answer keeps.
"""

from __future__ import annotations

import os
import time

import psutil

from pdevis.devices import available_cores

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # with which users choose the number themselves
BUSY_FIELDS = ("user", "nice", "system", "irq", "softirq")
MIN_SECONDS = 0.3  # of observation: shorter ones are extended, since times are counted in hundredths of a second


class ThreadChoice:
    """Watches the cores of this process from its creation on.

    Args:
        enabled: False to leave torch's threads as they are.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled and not any(os.environ.get(name) for name in VARIABLES)
        self._threads: int | None = None  # that were set
        self.watch()

    def watch(self) -> None:
        """Begin a new observation."""
        self._start = time.monotonic(), _seconds_of_others()

    def busy_cores(self) -> float:
        """Return how many cores other programs have used on average since the observation began."""
        begun, used = self._start
        time.sleep(max(0.0, begun + MIN_SECONDS - time.monotonic()))
        return max(0.0, _seconds_of_others() - used) / (time.monotonic() - begun)

    def adapt(self) -> str | None:
        """Set torch's number of threads; returns a line for the user if it changes."""
        cores = len(available_cores())
        if not self.enabled or cores == 1:
            return None
        import torch

        busy = self.busy_cores()
        threads = max(1, cores - int(busy + 0.5))
        if threads == (self._threads or cores):
            return None
        self._threads = threads
        torch.set_num_threads(threads)
        count = "1 thread" if threads == 1 else f"{threads} threads"
        return f"{count}: other programs use {busy:.1f} of {cores} cores (OMP_NUM_THREADS sets the number)"


def _seconds_of_others() -> float:
    """Return the seconds that other programs have used of this process's cores, up to a constant."""
    times = psutil.cpu_times(percpu=True)
    used = [getattr(times[core], name, 0.0) for core in available_cores() if core < len(times) for name in BUSY_FIELDS]
    return sum(used) - time.process_time()
