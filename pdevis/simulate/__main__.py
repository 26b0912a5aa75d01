r"""Simulate from traces how long drafting takes on other devices and at other thresholds, and how much that gains.

    python -m pdevis.simulate --trace exact.jsonl                                  # 1, 2 and 4 devices
    python -m pdevis.simulate --trace exact.jsonl parallel.jsonl --thresholds 0.8,0.9,0.95 --link_us 30
    python -m pdevis.simulate --trace exact.jsonl --devices 1 --mode skip --draft_ms 12 --target_ms 80 --json
    python -m pdevis.simulate --trace exact.jsonl --overlap --contention 1.3 --plot simulated.png

A trace is written by a run with --trace FILE. One recorded in mode exact can be simulated under any rule: each round's
first forward is exact, and the others follow the schedule that the recorded similarities give.

The cost model. Decoding reads every weight once, and its time is dominated by that: an exact draft step on one device
is divided among sublayers and head by their weights (--attention_share, --head_share: as measured). On N devices a
group of A attention lanes takes ceil(A/N) attention times, a batch of M MLPs ceil(M/N) MLP times, the head 1/N. While
k devices work at once, all that takes 1 + (C - 1)(k - 1)/(N - 1) times as long: C is --contention, 1 for devices that
share nothing, above 1 for cores that share memory. Each sublayer step, a whole layer in the exact pass, the head and
the choice of the token end in an exchange of --link_us, on several devices. Layers that skip leaves out cost nothing.
With --mlps rows, as between CPU cores, all devices work on each MLP: except for --repeated_share of it, which each of
them repeats, it takes 1/N and two exchanges. A round's first forward reads all tokens confirmed since the last, if
drafts are approximate; each but one adds --token_ms. The groups of a static --schedule run as wide layers: the
--kernel_share of a sublayer's time, which does not depend on its weights, is spent once for all lanes. python -m
pdevis.simulate.measure measures these on CPU cores.

A round takes its draft and its verification. With --overlap the next draft is made during the verification, after one
exact forward that guesses the bonus token; if all was accepted and the guess was right (as recorded, else with
probability β = accepted / tested draft tokens), the round waits for what then remains of it, else for a whole draft.
While both work each takes --target_contention times as long. The target is idle while it waits for drafts; the drafter
is idle while it has nothing to do or makes a draft that is thrown away.

Acceptance is never simulated: it is that of a trace recorded under the same rule, else the first one's, as the table
notes. The table goes to stdout. Exit code: 0; 2 for a mistake in flags or files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdevis.cli import Parser, run_main
from pdevis.config import DraftConfig
from pdevis.util.argtypes import bounded_float, choice, comma_list, positive_int, settings_field
from pdevis.util.files import print_json

if TYPE_CHECKING:
    from pdevis.simulate.simulation import Simulation, SimulationSettings
    from pdevis.simulate.trace_reader import Trace

MODES = ("parallel", "skip", "exact")
FRACTION = bounded_float(0, 1)


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.simulate", description=__doc__)
    _add_input_flags(parser)
    _add_device_flags(parser)
    _add_rule_flags(parser)
    group = parser.add_argument_group("result")
    group.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw speedups into a PNG file")
    return parser


def _add_input_flags(parser: Parser) -> None:
    add = parser.add_argument_group("recorded runs and measured times").add_argument
    positive_float = bounded_float(exclusive=True)
    add("--trace", type=Path, nargs="+", required=True, metavar="FILE", help="traces of one pair")
    # dest is not "profile": the parser would take that profile's settings for the defaults of these flags
    add("--profile", dest="tuned", metavar="FILE", help="use the times that python -m pdevis.tune has measured")
    add("--draft_ms", type=positive_float, metavar="X", help="time of an exact draft step on one device")
    add("--target_ms", type=positive_float, metavar="X", help="time of a target forward, over one token or several")
    text = "time that each further token adds (default: as traced, in proportion)"
    add("--token_ms", type=bounded_float(), metavar="X", help=text)
    text = "the attention's fraction of a layer's time (default: by weights)"
    add("--attention_share", type=FRACTION, metavar="X", help=text)
    add("--head_share", type=FRACTION, metavar="X", help="the head's fraction of a draft step (default: by weights)")


def _add_device_flags(parser: Parser) -> None:
    add = parser.add_argument_group("the drafter's devices").add_argument
    slowdown = bounded_float(1)
    text = "numbers of devices (default: 1,2,4)"
    add("--devices", type=comma_list(positive_int), default=(1, 2, 4), metavar="LIST", help=text)
    add("--link_us", type=bounded_float(), default=0.0, metavar="X", help="time of an exchange among them (default: 0)")
    text = "slowdown while all devices work at once (default: 1)"
    add("--contention", type=slowdown, default=1.0, metavar="X", help=text)
    text = "lanes: each MLP on one device; rows: each split over all (default: lanes)"
    add("--mlps", type=choice("lanes", "rows"), default="lanes", metavar="HOW", help=text)
    text = "fraction of a sublayer's time that does not depend on its weights (default: 0)"
    add("--kernel_share", type=FRACTION, default=0.0, metavar="X", help=text)
    text = "fraction of an MLP split by rows that each device repeats (default: 0)"
    add("--repeated_share", type=FRACTION, default=0.0, metavar="X", help=text)
    add("--overlap", action="store_true", help="draft during verification")
    text = "slowdown of target and drafter while both work (default: 1)"
    add("--target_contention", type=slowdown, default=1.0, metavar="X", help=text)


def _add_rule_flags(parser: Parser) -> None:
    add = parser.add_argument_group("the rule, with the planned check or a static schedule").add_argument
    text = f"{', '.join(MODES)} (default: parallel)"
    add("--mode", type=choice(*MODES), default="parallel", metavar="MODE", help=text)
    threshold = settings_field(DraftConfig, "threshold", float)
    text = "cosines (default: those recorded in that mode)"
    add("--thresholds", type=comma_list(threshold), metavar="LIST", help=text)
    text = "a static schedule, such as 0-1,2+3,4-5, instead of thresholds and windows"
    add("--schedule", type=settings_field(DraftConfig, "schedule", str), metavar="GROUPS", help=text)
    for name, text in (
        ("window", "layers that start from one hidden state (default: as many as devices)"),
        ("attention_window", "lanes of attention in a group (default: the window)"),
        ("mlp_window", "lanes of MLP in a group (default: the window, at most 2)"),
    ):
        add(f"--{name}", type=settings_field(DraftConfig, name, int), metavar="N", help=text)
    for name, end in (("keep_first", "first"), ("keep_last", "last")):
        default = getattr(DraftConfig(), name)
        text = f"{end} layers that always run alone (default: {default})"
        add(f"--{name}", type=settings_field(DraftConfig, name, int), default=default, metavar="N", help=text)


def run(args: argparse.Namespace) -> None:
    """Read, simulate, print. Raises ValueError on user mistakes."""

    from pdevis.simulate.simulation_output import save_plot, show_simulation
    from pdevis.util.console import make_console
    from pdevis.util.files import prepare_output_file

    if args.plot is not None:
        if args.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot {args.plot}: must end in .png")
        prepare_output_file(args.plot, flag="--plot", inputs=args.trace)
    simulation = simulate_flags(args)
    if args.plot is not None:
        save_plot(simulation, args.plot)
    if args.json:
        print_json(simulation.as_dict(), allow_nan=False)
    else:
        show_simulation(make_console(), simulation)


def simulate_flags(args: argparse.Namespace) -> Simulation:
    """Read the files that the flags name, and simulate them. Raises ValueError on user mistakes."""
    from pdevis.profile import read_profile
    from pdevis.simulate.simulation import simulate
    from pdevis.simulate.trace_selection import find_timing, read_traces

    traces = read_traces(args.trace)
    profile = None if args.tuned is None else read_profile(args.tuned)
    timing = find_timing(traces, profile, draft_ms=args.draft_ms, target_ms=args.target_ms, token_ms=args.token_ms)
    return simulate(traces, timing, simulation_settings(args, traces))


def simulation_settings(args: argparse.Namespace, traces: Sequence[Trace]) -> SimulationSettings:
    """Return the settings of the flags. The default thresholds are those of the traces in this mode.

    Raises:
        ValueError: a static schedule that is wrong, or together with thresholds.
    """
    from pdevis.drafting.schedule import parse_schedule
    from pdevis.simulate.costs import DeviceSet
    from pdevis.simulate.simulation import SimulationSettings

    windows_and_ends = ("attention_window", "mlp_window", "keep_first", "keep_last")
    recorded = [trace.rule.threshold for trace in traces if trace.rule.mode == args.mode]
    thresholds = args.thresholds or tuple(sorted(set(recorded or [traces[0].rule.threshold])))
    rule = DraftConfig(mode=args.mode, **{name: getattr(args, name) for name in windows_and_ends})
    if args.schedule is not None:
        if args.mode == "exact" or args.thresholds:
            raise ValueError(f"--schedule {args.schedule}: needs --mode parallel or skip, and no --thresholds")
        parse_schedule(args.schedule, traces[0].layers)
        rule = replace(rule, check="static", schedule=args.schedule)
    return SimulationSettings(
        rule=rule,
        thresholds=() if args.mode == "exact" or args.schedule else thresholds,
        device_counts=args.devices,
        window=args.window,
        devices=DeviceSet(link_seconds=args.link_us / 1e6, contention=args.contention, split_mlps=args.mlps == "rows"),
        overlap=args.overlap,
        attention_share=args.attention_share,
        head_share=args.head_share,
        repeated_share=args.repeated_share,
        kernel_share=args.kernel_share,
        target_contention=args.target_contention,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
