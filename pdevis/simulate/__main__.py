r"""Work out from traces what drafting would take on other devices and at other thresholds, and what that would bring.

    python -m pdevis.simulate --trace exact.jsonl                                  # 1, 2 and 4 devices
    python -m pdevis.simulate --trace exact.jsonl parallel.jsonl --thresholds 0.8,0.9,0.95 --link_us 30
    python -m pdevis.simulate --trace exact.jsonl --devices 1 --mode skip --draft_ms 12 --target_ms 80 --json
    python -m pdevis.simulate --trace exact.jsonl --overlap --contention 1.3 --plot simulated.png

A trace is what a run writes with --trace FILE. One recorded in mode exact can be simulated under any rule: each round's
first forward is exact, and the others follow the plan that the recorded similarities give.

The cost model. Decoding reads every weight once, and that is what takes its time: an exact draft step on one device is
divided among sublayers and head by their weights (--attention_share, --head_share: as measured). On N devices a group
of A attention lanes takes ceil(A/N) attention times, a batch of M MLPs ceil(M/N) MLP times, the head 1/N. While k
devices work at once, all that takes 1 + (C - 1)(k - 1)/(N - 1) times as long: C is --contention, 1 for devices of
their own, above 1 for cores that share memory. Each sublayer step, a whole layer in the exact pass, the head and the
choice of the token end in an exchange of --link_us, on several devices. Layers that skip leaves out cost nothing.
With --mlps rows, as between CPU cores, all devices work on each MLP: but for --repeated_share of it, which each of
them repeats, it takes 1/N and two exchanges. A round's first forward reads all tokens confirmed since the last, where
drafts are approximate; each but one adds --token_ms. tools/bench_costs.py measures all these on CPU cores.

A round takes its draft and its verification. With --overlap the next draft is made during the verification, behind one
exact forward that guesses the target's token; where all was accepted and the guess was right (as recorded, else with
probability β = accepted / tested draft tokens), the round waits for what then remains of it, else for a whole draft.
While both work each takes --target_contention times as long.
The target idles while it waits for drafts; the drafter, while it has nothing to do or makes what is thrown away.

Acceptance is never simulated: it is that of a trace recorded under the same rule, else the first one's, as the table
says. The table goes to stdout. Exit code: 0, 2 for a mistake in flags or files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdevis.cli import Parser, run_main
from pdevis.config import DraftConfig
from pdevis.util.argtypes import checked, list_of, number, one_of, positive

MODES = ("parallel", "skip", "exact")


def build_parser() -> Parser:
    base = DraftConfig()
    parser = Parser(prog="python -m pdevis.simulate", description=__doc__)
    group = parser.add_argument_group("what is known")
    group.add_argument("--trace", type=Path, nargs="+", required=True, metavar="FILE", help="traces of one pair")
    # not "profile": that would make its settings the defaults of these flags
    group.add_argument("--profile", dest="tuned", metavar="FILE", help="times that python -m pdevis.tune has measured")
    add = group.add_argument
    add("--draft_ms", type=number(above=True), metavar="X", help="an exact draft step on one device")
    add("--target_ms", type=number(above=True), metavar="X", help="a target forward, over one token or several")
    add("--token_ms", type=number(), metavar="X", help="that each further token adds (default: as traced)")
    add("--attention_share", type=number(0, 1), metavar="X", help="attention's part of a layer (default: by weights)")
    add("--head_share", type=number(0, 1), metavar="X", help="the head's part of a draft step (default: by weights)")
    group = parser.add_argument_group("the drafter's devices")
    add = group.add_argument
    add("--devices", type=list_of(positive), default=(1, 2, 4), metavar="LIST", help="numbers (default: 1,2,4)")
    add("--link_us", type=number(), default=0.0, metavar="X", help="of an exchange among them (default: 0)")
    add("--contention", type=number(1), default=1.0, metavar="X", help="slowdown when all work at once (default: 1)")
    add("--mlps", type=one_of("lanes", "rows"), default="lanes", metavar="HOW", help="lanes: whole; rows: cut by rows")
    add("--repeated_share", type=number(0, 1), default=0.0, metavar="X", help="of an MLP cut by rows (default: 0)")
    add("--overlap", action="store_true", help="the drafter goes on while the target verifies")
    text = "slowdown of target and drafter while both work (default: 1)"
    add("--target_contention", type=number(1), default=1.0, metavar="X", help=text)
    group = parser.add_argument_group("the rule, with the planned check")
    add = group.add_argument
    add(
        "--mode",
        type=one_of(*MODES),
        default="parallel",
        metavar="MODE",
        help=f"{', '.join(MODES)} (default: parallel)",
    )
    threshold = checked(DraftConfig, "threshold", float)
    add("--thresholds", type=list_of(threshold), metavar="LIST", help="cosines (default: those recorded in that mode)")
    for flag, text in (
        ("--window", "layers that start from one hidden state (default: as many as devices)"),
        ("--attention_window", "lanes of attention in a group (default: the window)"),
        ("--mlp_window", "lanes of MLP in a group (default: the window, at most 2)"),
    ):
        add(flag, type=checked(DraftConfig, flag[2:], int), metavar="N", help=text)
    for name in ("keep_first", "keep_last"):
        kind, default = checked(DraftConfig, name, int), getattr(base, name)
        text = f"{name[5:]} layers that always run alone (default: {default})"
        add(f"--{name}", type=kind, default=default, metavar="N", help=text)
    group = parser.add_argument_group("result")
    group.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw speedups into a PNG file")
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, simulate, print. Raises ValueError on user mistakes."""
    import json

    from pdevis.benchmarks.summary.summary_script import check_targets
    from pdevis.profile import read_profile
    from pdevis.simulate.simulation import simulate
    from pdevis.simulate.simulation_table import show_simulation
    from pdevis.simulate.trace_selection import find_timing, read_traces
    from pdevis.util.console import make_console

    check_targets(args.trace, {"--plot": args.plot})
    traces = read_traces(args.trace)
    profile = None if args.tuned is None else read_profile(args.tuned)
    timing = find_timing(traces, args.draft_ms, args.target_ms, profile, args.token_ms)
    result = simulate(traces, timing, setup_of(args, traces))
    if args.plot is not None:
        from pdevis.simulate.simulation_plot import draw_simulation

        draw_simulation(result, args.plot)
    if args.json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        show_simulation(make_console(), result)


def setup_of(args: argparse.Namespace, traces: Sequence[Any]) -> Any:
    """The settings of the flags; thresholds that are not given are those of the traces."""
    from pdevis.simulate.costs import Machine
    from pdevis.simulate.simulation import Setup

    names = ("attention_window", "mlp_window", "keep_first", "keep_last")
    draft = DraftConfig(mode=args.mode, **{name: getattr(args, name) for name in names})
    recorded = [trace.rule.threshold for trace in traces if trace.rule.mode == args.mode]
    thresholds = args.thresholds or tuple(sorted(set(recorded or [traces[0].rule.threshold])))
    machine = Machine(1, args.link_us / 1e6, args.contention, args.mlps == "rows")
    shares = args.attention_share, args.head_share
    chosen = () if args.mode == "exact" else thresholds
    rest = args.repeated_share, args.target_contention
    return Setup(draft, chosen, args.devices, args.window, machine, args.overlap, *shares, *rest)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
