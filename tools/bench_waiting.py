"""Compare ways in which torch's threads wait for each other, on a quiet machine and next to a busy process.

    python tools/bench_waiting.py                                # the embedded model, some minutes
    python tools/bench_waiting.py --policies none,passive,spin:1000 --rounds 5

Between two products a thread waits for the others, either spinning, which is fast if each has a core of its own, or
asleep, which leaves the core to other programs. A policy is "none" (what the library does by itself), "auto" (a thread
for each core that other programs leave, as in the chat), "passive" (OMP_WAIT_POLICY=PASSIVE), "spin:N"
(GOMP_SPINCOUNT=N, GNU's OpenMP), or "threads:N".
Each is timed in a fresh process, plain and speculative, in turn; the busy process is an endless loop on one core.

Printed are tokens/s, medians over the rounds, and ratios to the first policy on the quiet machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from pdevis.cli import DEFAULT_TARGET, Parser, run_main
from pdevis.util.argtypes import comma_list, positive_int
from pdevis.util.console import StderrLog, format_number, make_console, make_table

DEFAULT_POLICIES = ("none", "auto", "passive", "spin:300", "spin:3000", "spin:30000", "threads:1")
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
METHODS = ("target", "speculative")
CHILD = """
import json, sys
from pdevis.tune.free_cores import ThreadChoice
threads = ThreadChoice(enabled=sys.argv[3] == "auto")
from pdevis import DecodeConfig, load_pair
pair = load_pair(sys.argv[1])
threads.adapt()
config = DecodeConfig(max_new_tokens=int(sys.argv[2]), gamma=3, eos_ids=())
for method in ("target", "speculative"):
    pair.generate("Why is the sky blue?", config, method)
speeds = {}
for method in ("target", "speculative"):
    speeds[method] = pair.generate("Who was Marie Curie?", config, method).stats.tokens_per_second
print(json.dumps(speeds))
"""


def environment(policy: str) -> dict[str, str]:
    """Return the environment of a process under a policy. Raises ValueError for one that is unknown."""
    base = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kind, _, number = policy.partition(":")
    if policy in ("none", "auto"):
        return base
    if policy == "passive":
        return base | {"OMP_WAIT_POLICY": "PASSIVE"}
    if kind in ("spin", "threads") and number.isdecimal():
        return base | {"GOMP_SPINCOUNT" if kind == "spin" else "OMP_NUM_THREADS": number}
    raise ValueError(f"--policies: {policy!r} must be none, auto, passive, spin:N or threads:N")


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy within the block, if wanted."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def measure(policy: str, model: str, length: int) -> dict[str, float]:
    """Return the tokens/s of both methods in a fresh process. Raises ValueError if it fails."""
    command = [sys.executable, "-c", CHILD, model, str(length), policy]
    done = subprocess.run(command, env=environment(policy), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"a process under {policy} failed: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(args: Namespace) -> None:
    for policy in args.policies:
        environment(policy)
    log = StderrLog()
    times: dict[tuple[str, bool, str], list[float]] = {}
    for number in range(args.rounds):
        for busy in (False, True):
            with busy_process(busy):
                for policy in args.policies:
                    log(f"round {number + 1} of {args.rounds}, {'busy' if busy else 'quiet'}, {policy}")
                    for method, speed in measure(policy, args.model, args.length).items():
                        times.setdefault((policy, busy, method), []).append(speed)
    speeds = {key: median(found) for key, found in times.items()}
    reference = args.policies[0]
    rows = []
    for policy in args.policies:
        cells = [policy]
        for busy in (False, True):
            for method in METHODS:
                ratio = speeds[policy, busy, method] / speeds[reference, False, method]
                cells.append(f"{format_number(speeds[policy, busy, method], 1)} ({ratio:.2f})")
        rows.append(cells)
    columns = ("policy", "quiet: target", "quiet: speculative", "busy: target", "busy: speculative")
    make_console().print(make_table(columns, rows))
    make_console().print(
        f"tokens/s, medians of {args.rounds} rounds; in brackets over {reference} on the quiet machine"
    )


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", default=DEFAULT_TARGET, help="target, drafting for itself (default: %(default)s)")
    add("--policies", type=comma_list(str), default=DEFAULT_POLICIES, metavar="LIST", help="the first is the reference")
    add("--length", type=positive_int, default=48, metavar="N", help="new tokens (default: %(default)s)")
    add("--rounds", type=positive_int, default=3, metavar="N", help="of all policies (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
