"""For --code_path in tests: pdevis' own load_pair, with answers that can be made slow, stopped or failing.

WAIT: seconds that every answer takes longer. STOP_AT, FAIL_AT: the number of the answer (from 1, warm-ups included)
that is interrupted as by Ctrl-C, or fails.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pdevis


def load_pair(*args: Any, **settings: Any) -> Any:
    pair = pdevis.load_pair(*args, **settings)
    generate, count = pair.generate, 0

    def slow(*args: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        time.sleep(float(os.environ.get("WAIT", "0")))
        if count == int(os.environ.get("STOP_AT", "0")):
            raise KeyboardInterrupt
        if count == int(os.environ.get("FAIL_AT", "0")):
            raise RuntimeError("no memory left")
        return generate(*args, **settings)

    pair.generate = slow
    return pair
