"""A file for --code_path in tests: pdevis' own load_pair, with answers that can hang, be interrupted or failing.

Environment variables: HANG_AT, STOP_AT, FULL_AT and FAIL_AT, number of the answer (from 1, with warm-ups) that never
comes, is interrupted as by Ctrl-C, meets a full disk, or fails.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pdevis


def load_pair(*args: Any, **settings: Any) -> Any:
    pair = pdevis.load_pair(*args, **settings)
    generate, count = pair.generate, 0

    def controlled_generate(*args: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == int(os.environ.get("HANG_AT", "0")):
            time.sleep(86400)
        if count == int(os.environ.get("STOP_AT", "0")):
            raise KeyboardInterrupt
        if count == int(os.environ.get("FULL_AT", "0")):
            raise OSError(errno.ENOSPC, "No space left on device", "trace.jsonl")
        if count == int(os.environ.get("FAIL_AT", "0")):
            raise RuntimeError("no memory left")
        return generate(*args, **settings)

    pair.generate = controlled_generate
    return pair
