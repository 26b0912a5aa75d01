"""Run a speed comparison: load the models, measure all decoders interleaved, store, print.

A unit of work is a prompt with all decoders, the comparison of draft steps, or the measurement of memory. With
--output each finished unit is journalled, and a stopped run can be resumed; without it nothing is written.

    run_main(run_speed, speed_parser(__doc__).parse_args())
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pdevis.benchmarks.peak_memory import measure_memory
from pdevis.benchmarks.runs.distributed import DistEnv
from pdevis.benchmarks.runs.journal import Output
from pdevis.benchmarks.runs.result_files import encode_meta
from pdevis.benchmarks.runs.resumable_run import ResumableRun
from pdevis.benchmarks.speed.baselines import DRAFT_STEP, load_baselines
from pdevis.benchmarks.speed.decoders import (
    PLAIN,
    Decoder,
    measure,
    pairs_by_device,
    plain,
    speculative,
    warm_up,
)
from pdevis.benchmarks.speed.draft_step import measure_steps
from pdevis.benchmarks.speed.speed_report import BENCHMARK, MEMORY, PROMPT, Entry, summarize
from pdevis.benchmarks.speed.speed_spec import SPECULATIVE, SpeedSpec, read_spec
from pdevis.benchmarks.speed.speed_table import show_speed
from pdevis.util.console import make_console
from pdevis.util.files import parse_json, prepare_output_file, read_text
from pdevis.util.provenance import versions

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


def log(line: str) -> None:
    """Print a line to stderr, above the progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)


class SpeedRun:
    """The units of work of one comparison, as `spec.units` lists them."""

    def __init__(self, spec: SpeedSpec) -> None:
        self.spec = spec
        self.memory: dict[str, Any] = {"left_out": "not measured"}
        self._totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # by decoder: tokens, seconds

    def load(self, done: frozenset[int] = frozenset()) -> SpeculativePair:
        """Load the pair. Measure memory before that, while this process holds no models, if it is not `done`."""
        from pdevis.pair import load_pair

        spec = self.spec
        arguments = dict(spec.pair_arguments)
        if spec.device_lists:  # every drafter runs in separate processes, so that they are compared alike
            arguments |= {"draft_device": spec.device_lists[0], "overlap": True}
        if spec.measures_memory and spec.units.index(MEMORY) not in done:
            log("measuring the memory of pdevis alone, in a separate process")
            self.memory = measure_memory(arguments, draft=spec.drafts[0], gamma=spec.gammas[0], length=spec.length)
        return load_pair(**arguments, draft=spec.drafts[0], on_progress=log)

    def measure_units(self, pair: SpeculativePair, units: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        """Yield the number and the entry of each unit when it is finished."""
        kinds = {unit: self.spec.units[unit] for unit in units}
        for unit in [unit for unit, kind in kinds.items() if kind == MEMORY]:
            yield unit, {"kind": MEMORY, **self.memory}
        if set(kinds.values()) <= {MEMORY}:
            return
        prompts = self._encode(pair)
        baselines = load_baselines(
            self.spec.wanted,
            pair,
            models=(self.spec.pair_arguments["target"], self.spec.pair_arguments["drafter"]),
            gamma=self.spec.fixed_gamma,
            gguf=self.spec.gguf,
            context=max(map(len, prompts)) + self.spec.length,
            on_progress=log,
        )
        decoders = {decoder.name: decoder for decoder in [plain(pair), *baselines.decoders, *self._speculative(pair)]}
        log(f"warming up {len(decoders)} decoders")
        working = warm_up(list(decoders.values()), prompts[0])
        left_out = {**baselines.left_out, **working.left_out}
        for unit in [unit for unit, kind in kinds.items() if kind == DRAFT_STEP]:
            yield unit, {"kind": DRAFT_STEP, **measure_steps(pair, baselines.drafter, prompts)}
        for unit in [unit for unit, kind in kinds.items() if kind == PROMPT]:
            yield unit, self._measure_prompt(unit, working.decoders, prompts[unit]) | {"left_out": left_out}

    def _speculative(self, pair: SpeculativePair) -> Iterator[Decoder]:
        """Yield the speculative decoders: all drafting settings and γ on all device lists, with and without overlap."""
        if SPECULATIVE not in self.spec.wanted:
            return
        overlaps = (False, True) if self.spec.overlap else (False,)
        for device, device_pair in pairs_by_device(pair, self.spec.device_lists):
            for draft, gamma, overlap in product(self.spec.drafts, self.spec.gammas, overlaps):
                yield speculative(
                    device_pair,
                    draft,
                    gamma=gamma,
                    device=device,
                    overlap=overlap,
                    acceptance=self.spec.synthetic_acceptance,
                )

    def _measure_prompt(self, unit: int, decoders: Sequence[Decoder], ids: list[int]) -> Entry:
        prompt = self.spec.prompts[unit]
        return {
            "kind": PROMPT,
            "question_id": prompt.question_id,
            "category": prompt.category,
            "prompt_tokens": len(ids),
            "contestants": measure(decoders, ids, length=self.spec.length, prompt_number=unit),
        }

    def _encode(self, pair: SpeculativePair) -> list[list[int]]:
        """Return the ids of all prompts. The context must hold every answer, so that all have the same length."""
        prompts = []
        for number, prompt in enumerate(self.spec.prompts, 1):
            ids = pair.encode(prompt.text)
            if len(ids) + self.spec.length > pair.context_length:
                raise ValueError(
                    f"prompt {number} of {len(ids)} tokens and {self.spec.length} new ones: must fit in the target's "
                    f"context of {pair.context_length}"
                )
            prompts.append(ids)
        return prompts

    def progress(self, entry: Entry) -> dict[str, str]:
        """Add an entry; return the fastest speculative decoder so far and its speed over plain decoding."""
        for name, measured in entry.get("contestants", {}).items():
            if measured["kind"] != "peer":
                self._totals[name][0] += len(measured["ids"])
                self._totals[name][1] += measured["seconds"]
        speeds = {name: tokens / seconds for name, (tokens, seconds) in self._totals.items()}
        plain_speed = speeds.pop(PLAIN, None)
        if not speeds or plain_speed is None:
            return {}
        fastest = max(speeds, key=speeds.__getitem__)
        return {fastest.removeprefix("pdevis, "): f"{speeds[fastest] / plain_speed:.2f}x plain"}


def run_speed(args: Namespace) -> int:
    """Measure, store and print as the flags of `speed_parser` say.

    Returns:
        The exit code: 1 if, on CPU, greedy ids that must equal those of plain decoding do not, else 0. On a GPU the
        kernels for one and for several tokens round differently, and near-ties may fall either way.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: with --output finished units
            are kept in the journal; without it, what is finished is printed first.
    """
    spec = read_spec(args)
    run = SpeedRun(spec)
    if not spec.is_main:
        run.load()
        return 0
    header = {"benchmark": BENCHMARK, "settings": spec.settings(), "versions": versions()}
    summary = _run_with_output(run, header) if spec.output else _run_without_output(run, header)
    show_speed(make_console(), summary)
    on_cpu = str((summary["pair"] or {}).get("target_device", "cpu")).startswith("cpu")
    return int(on_cpu and not summary["equality"]["all_equal"])


def _run_with_output(speed: SpeedRun, header: dict[str, Any]) -> dict[str, Any]:
    """Measure what no earlier run has finished, write the result file, and return its summary."""
    spec = speed.spec
    output = Output(spec.output, resume=spec.resume, overwrite=spec.overwrite)
    prepare_output_file(output.path, inputs=[path for path in (spec.specbench, spec.gguf) if path])
    with output.lock():
        _measure_into(output, speed, header)
        result = parse_json(read_text(output.path))
    return summarize(result["entries"], result)


def _measure_into(output: Output, speed: SpeedRun, header: dict[str, Any]) -> None:
    """Measure what is left to do, and write the result file."""
    spec = speed.spec
    question_ids = [prompt.question_id for prompt in spec.prompts]
    run = ResumableRun(
        "speed",
        header=header,
        units=len(spec.units),
        output=output,
        env=DistEnv(),
        progress=spec.progress,
        question_ids=[*question_ids, *(None for _ in spec.units[len(question_ids) :])],
    )
    if run.is_complete:
        run.report_complete()
    else:
        pair = speed.load(frozenset(run.earlier.entries)) if run.todo else None
        with run.recording(pair):
            for unit, entry in speed.measure_units(pair, run.todo):
                run.add(unit, entry)
                run.show_progress(speed.progress(entry))
        entries = run.collect()
        meta = run.meta(entries, {"command": sys.argv})
        run.write(encode_meta(meta | summarize(entries, meta) | {"entries": entries}), meta)
        run.report(entries, [])


def _run_without_output(run: SpeedRun, header: dict[str, Any]) -> dict[str, Any]:
    """Measure everything and return the summary. After Ctrl-C, print that of the finished prompts."""
    pair = run.load()
    meta = header | {"pair": pair.describe()}
    entries: dict[int, Entry] = {}
    units = range(len(run.spec.units))
    bar = tqdm(desc="speed", total=len(units), unit="item", file=sys.stderr, disable=not run.spec.progress)
    try:
        with bar:
            for unit, entry in run.measure_units(pair, units):
                entries[unit] = entry
                bar.set_postfix(run.progress(entry), refresh=False)
                bar.update()
    except KeyboardInterrupt:
        finished = [entries[unit] for unit in sorted(entries)]
        if any(entry["kind"] == PROMPT for entry in finished):
            show_speed(make_console(), summarize(finished, meta, partial=True))
        raise
    return summarize([entries[unit] for unit in sorted(entries)], meta)
