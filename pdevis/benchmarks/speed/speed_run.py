"""The run behind `evaluation/speed/evaluate_speed.py`: load, measure in turn, keep, print.

A unit of work is a prompt with all contestants, the draft-step comparison, or the memory measurement. With --output
each finished unit is written to a journal (see resumable_run), and a stopped run can be resumed; without, nothing is
written.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pdevis.benchmarks.runs.distributed import DistEnv
from pdevis.benchmarks.runs.journal import Output
from pdevis.benchmarks.runs.result_files import encode_meta
from pdevis.benchmarks.runs.resumable_run import ResumableRun
from pdevis.benchmarks.speed.baselines import NAMES, load_peers, peer_name, unavailable
from pdevis.benchmarks.speed.decoders import PLAIN, Contestant, measure, plain, speculative, warm_up
from pdevis.benchmarks.speed.draft_step import measure_steps
from pdevis.benchmarks.speed.memory import measure_memory
from pdevis.benchmarks.speed.speed_devices import pairs_on, parse_layouts
from pdevis.benchmarks.speed.speed_prompts import SpeedPrompt
from pdevis.benchmarks.speed.speed_summary import KIND, Entry, summarize
from pdevis.benchmarks.speed.speed_table import show_speed
from pdevis.cli import is_main_rank, on_ranks, pair_arguments
from pdevis.config import DraftConfig
from pdevis.util.console import make_console
from pdevis.util.files import prepare_output_file
from pdevis.util.provenance import sha256, versions

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair

DRAFT_STEP = "draft-step"
ASKED = "--without"


def say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # above the bar, where there is one


@dataclass
class SpeedRun:
    """What is measured, and on what.

    Args:
        args: of evaluate_speed.py.
        drafts, gammas: the speculative contestants are all their combinations.
        prompts: what they continue.
        without: keys of `NAMES`, "speculative" and "draft-step" that are not wanted.
    """

    args: Namespace
    drafts: Sequence[DraftConfig]
    gammas: Sequence[int | str]
    prompts: Sequence[SpeedPrompt]
    without: Sequence[str]
    memory: dict[str, Any] | None = None
    totals: dict[str, list[float]] = field(default_factory=dict)  # name -> [tokens, seconds], for the progress bar

    def __post_init__(self) -> None:
        numbers = [gamma for gamma in self.gammas if isinstance(gamma, int)]
        self.layouts = parse_layouts(self.args.draft_devices)
        self.fixed_gamma = numbers[0] if numbers else 4
        reasons = dict.fromkeys(self.without, ASKED) | {
            key: reason
            for key, reason in unavailable(self.args.drafter_model == "self", self.args.gguf).items()
            if key not in self.without
        }
        self.wanted = [key for key in (*NAMES, DRAFT_STEP, "speculative") if key not in reasons]
        self.left_out = {
            peer_name(key, self.fixed_gamma, self.args.gguf) if key in NAMES else key: reason
            for key, reason in reasons.items()
        }
        self.kinds = ["prompt"] * len(self.prompts)
        self.kinds += [DRAFT_STEP] if DRAFT_STEP in self.wanted else []
        away = self.layouts or self.args.overlap or "cpu:" in str(self.args.draft_device or self.args.device)
        away = away or on_ranks(self.args)
        if self.args.memory and away:
            self.left_out["peak memory"] = "the drafter has processes of its own"
        self.kinds += ["memory"] if self.args.memory and not away else []

    def settings(self) -> dict[str, Any]:
        """All that has an influence on the results, for the header."""
        import torch

        args = self.args
        names = ("target_model", "drafter_model", "target_precision", "draft_precision", "length", "memory")
        return {
            **{name: getattr(args, name) for name in names},
            "drafts": [asdict(draft) for draft in self.drafts],
            "gammas": list(self.gammas),
            "target_device": args.target_device or args.device,
            "draft_devices": self.layouts or [args.draft_device or args.device],
            "overlap": args.overlap,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "specbench_sha256": sha256(args.specbench) if args.specbench else None,
            "gguf": args.gguf and {"name": args.gguf.name, "bytes": args.gguf.stat().st_size},
            "left_out": self.left_out,
            "threads": torch.get_num_threads(),
        }

    def load(self, done: frozenset[int] = frozenset()) -> SpeculativePair:
        """The pair. Memory is measured first, while this process holds no models."""
        from pdevis.pair import load_pair

        options = pair_arguments(self.args)
        draft = options.pop("draft")
        draft = self.drafts[0] if self.drafts else draft
        if self.layouts:  # every drafter in processes of its own, so that they are compared alike
            options |= {"draft_device": self.layouts[0], "overlap": True}
        if "memory" in self.kinds and self.kinds.index("memory") not in done:
            say("measuring the memory of pdevis alone, in a process of its own")
            self.memory = measure_memory(options, draft, self.gammas[0], self.args.length)
        return load_pair(**options, draft=draft, on_progress=say)

    def produce(self, pair: SpeculativePair, units: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        """(number, entry) of each unit, as it is finished."""
        kinds = {unit: self.kinds[unit] for unit in units}
        for unit in [unit for unit, kind in kinds.items() if kind == "memory"]:
            yield unit, {"kind": "memory", **(self.memory or {"left_out": "not measured"})}
        if set(kinds.values()) <= {"memory"}:
            return
        ids = self._encode(pair)
        models, context = (self.args.target_model, self.args.drafter_model), max(map(len, ids)) + self.args.length
        peers = load_peers(self.wanted, pair, models, self.fixed_gamma, self.args.gguf, context, say)
        entrants: list[Contestant] = [plain(pair), *peers.contestants]
        if "speculative" in self.wanted:
            for device, one in pairs_on(pair, self.layouts):
                for draft, gamma, overlap in product(self.drafts, self.gammas, (False, True)[: 1 + self.args.overlap]):
                    entrants.append(speculative(one, draft, gamma, device, overlap))
        entrants = list({each.name: each for each in entrants}.values())
        say(f"warming up {len(entrants)} decoders")
        contestants, failed = warm_up(entrants, ids[0])
        for unit in [unit for unit, kind in kinds.items() if kind == DRAFT_STEP]:
            yield unit, {"kind": DRAFT_STEP, **measure_steps(pair, peers.drafter, ids)}
        for unit in [unit for unit, kind in kinds.items() if kind == "prompt"]:
            prompt = self.prompts[unit]
            about = {"question_id": prompt.question_id, "category": prompt.category, "prompt_tokens": len(ids[unit])}
            measured = measure(contestants, ids[unit], self.args.length, unit)
            yield (
                unit,
                {"kind": "prompt", **about, "left_out": {**peers.left_out, **failed}, "contestants": measured},
            )

    def note(self, entry: Entry) -> dict[str, str]:
        """For the progress bar: the fastest of our speculative decoders so far, and its speed over plain decoding."""
        for name, found in entry.get("contestants", {}).items():
            if found["kind"] != "peer":
                total = self.totals.setdefault(name, [0, 0.0])
                total[0] += len(found["ids"])
                total[1] += found["seconds"]
        speeds = {name: tokens / seconds for name, (tokens, seconds) in self.totals.items()}
        plain_speed = speeds.pop(PLAIN, None)
        if not speeds or plain_speed is None:
            return {}
        best = max(speeds, key=speeds.__getitem__)
        return {best.removeprefix("pdevis, "): f"{speeds[best] / plain_speed:.2f}x plain"}

    def _encode(self, pair: SpeculativePair) -> list[list[int]]:
        """Ids of all prompts; all must leave room for the answer, so that all contestants write equally many tokens."""
        found = []
        for number, prompt in enumerate(self.prompts, 1):
            ids = pair.encode(prompt.text)
            if len(ids) + self.args.length > pair.context_length:
                raise ValueError(
                    f"prompt {number} of {len(ids)} tokens and {self.args.length} new ones: must fit in the target's "
                    f"context of {pair.context_length}"
                )
            found.append(ids)
        return found


def run_speed(run: SpeedRun) -> int:
    """Measure, keep, print; on CPU, returns 1 where greedy ids that must be plain decoding's are not, else 0.

    On a GPU kernels for one and for several tokens round differently, and near-ties may fall either way.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: with --output finished units
            are kept in the journal; without, what is finished is printed first.
    """
    if not is_main_rank(run.args):
        run.load()
        return 0
    header = {"benchmark": KIND, "settings": run.settings(), "versions": versions()}
    summary = _kept(run, header) if run.args.output else _printed(run, header)
    show_speed(make_console(), summary)
    on_cpu = str((summary["pair"] or {}).get("target_device", "cpu")).startswith("cpu")
    return int(on_cpu and not summary["equality"]["all_equal"])


def _kept(run: SpeedRun, header: dict[str, Any]) -> dict[str, Any]:
    args = run.args
    output = Output(args.output, resume=args.resume, overwrite=args.overwrite)
    prepare_output_file(output.path, inputs=[path for path in (args.specbench, args.gguf) if path])
    units = len(run.kinds)
    kept_run = ResumableRun("speed", header=header, units=units, output=output, env=DistEnv(), progress=args.progress)
    if kept_run.is_complete:
        kept_run.report_complete()
    else:
        pair = run.load(frozenset(kept_run.earlier.entries)) if kept_run.todo else None
        with kept_run.recording(pair):
            for unit, entry in run.produce(pair, kept_run.todo):
                kept_run.add(unit, entry)
                kept_run.show_progress(run.note(entry))
        entries = kept_run.collect()
        meta = kept_run.meta(entries, {"command": sys.argv})
        kept_run.write(encode_meta(meta | summarize(entries, meta) | {"entries": entries}), meta)
        kept_run.report(entries, [])
    kept = json.loads(output.path.read_text(encoding="utf-8"))
    return summarize(kept["entries"], kept)


def _printed(run: SpeedRun, header: dict[str, Any]) -> dict[str, Any]:
    pair = run.load()
    meta = header | {"pair": pair.describe()}
    entries: dict[int, Entry] = {}
    units = list(range(len(run.kinds)))
    bar = tqdm(desc="speed", total=len(units), unit="item", file=sys.stderr, disable=not run.args.progress)
    try:
        with bar:
            for unit, entry in run.produce(pair, units):
                entries[unit] = entry
                bar.set_postfix(run.note(entry), refresh=False)
                bar.update()
    except KeyboardInterrupt:
        if any(entry["kind"] == "prompt" for entry in entries.values()):
            show_speed(make_console(), summarize([entries[unit] for unit in sorted(entries)], meta, partial=True))
        raise
    return summarize([entries[unit] for unit in sorted(entries)], meta)
