"""An evaluate script's work: one benchmark, every method on each item, one result file. `evaluate` is the sequence.

    run_main(run_evaluation, evaluation_parser("mmlu", __doc__, root).parse_args())

Answers are scored while the run goes on, so that quality is known when it ends; scores are not stored, since summaries
compute them from the answers.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pdevis.benchmarks.runs.conversation import Conversation, GenerationSettings, run_conversation, warm_up
from pdevis.benchmarks.runs.distributed import DistEnv, process_group
from pdevis.benchmarks.runs.lossless_check import compare_turns, count_matches, format_match_counts
from pdevis.benchmarks.runs.result_files import (
    LINES,
    METHODS,
    Entry,
    count_answers,
    encode_results,
    make_block,
    make_conversation_block,
    method_keys,
    scored_text,
)
from pdevis.benchmarks.runs.resumable_run import ResumableRun
from pdevis.benchmarks.runs.run_spec import RunSpec, join_as_worker, locked_output, make_run_spec
from pdevis.benchmarks.tasks import Item, Scores, Task
from pdevis.cli import is_main_rank
from pdevis.reasoning.split_reasoning import unfinished_note
from pdevis.util.argtypes import one_line

if TYPE_CHECKING:
    from pdevis.pair import SpeculativePair


def answer_item(pair: SpeculativePair, task: Task, item: Item, *, settings: GenerationSettings, index: int) -> Entry:
    """Answer one question by every method; if greedy, compare the speculative ids with the target's."""
    entry: Entry = dict(task.entry(item))
    keys, turns = method_keys(task.name), task.prompts(item)
    conversations: dict[str, Conversation] = {}
    for method in settings.methods:
        conversations[method] = run_conversation(pair, turns, method, settings=settings, index=index)
        answers, thoughts = conversations[method].answers, conversations[method].thoughts
        if task.name in LINES:
            entry[keys[method]] = make_conversation_block(answers, thoughts)
        else:
            entry[keys[method]] = make_block(answers[0].stats, answers[0].text, answers[0].ids, thoughts[0])
    if settings.decode.greedy and {"target", "speculative"} <= set(conversations):
        target, speculative = conversations["target"], conversations["speculative"]
        entry[keys["speculative"]] |= compare_turns(pair, target.prompts, target.answers, speculative.answers)
    return entry


class ItemRunner:
    """Answers items after a warm-up; an item that fails gets an entry with "error"."""

    def __init__(self, pair: SpeculativePair | None, task: Task, settings: GenerationSettings) -> None:
        self.pair, self.task, self.settings = pair, task, settings
        self._is_warm = False

    def run(self, index: int, item: Item) -> Entry:
        """Entry of item number `index`. Raises OSError if the drafter's processes have ended or a disk is full."""
        assert self.pair is not None
        try:
            if not self._is_warm:
                warm_up(self.pair, self.task.prompts(item), self.settings)
                self._is_warm = True
            return answer_item(self.pair, self.task, item, settings=self.settings, index=index)
        except OSError:  # every further question would fail too
            raise
        except Exception as error:
            return {**self.task.entry(item), "error": f"{type(error).__name__}: {one_line(error)}"}


class RunningTotals:
    """Speed and quality of each method over the entries so far; entries with "error" do not count."""

    def __init__(self, task: Task, methods: Iterable[str]) -> None:
        keys = method_keys(task.name)
        self.task = task
        self.keys = {method: keys[method] for method in methods}
        self.scoring_error = ""
        self._entries: dict[int, Entry] = {}
        self._scores: dict[str, list[Scores]] = {method: [] for method in self.keys}
        self._sums: dict[str, Counter[str]] = {method: Counter() for method in METHODS}

    def add(self, unit: int, entry: Entry) -> None:
        """Add and score the entry of a unit, unless it has been added before."""
        if "error" in entry or unit in self._entries:
            return
        self._entries[unit] = entry
        for method, key in self.keys.items():
            for name in ("tokens_generated", "seconds", "drafted", "accepted"):
                self._sums[method][name] += entry[key].get(name, 0)
            self._sums[method].update(dict(zip(("answers", "unfinished"), count_answers(entry[key]))))
        if not self.scoring_error:
            try:
                self._score(entry)
            except Exception as error:  # the run goes on: a summary can score its answers later
                self.scoring_error = f"{type(error).__name__}: {one_line(error)}"

    def progress(self) -> dict[str, str]:
        """Speed, the mean of the task's first metric, and the acceptance rate so far, as short texts."""
        shown = {}
        for method in self.keys:
            if texts := [*self._speed(method), *_named(self._means(method, self.task.metrics[:1]))]:
                shown[method] = ", ".join(texts)
        rate = self._ratio("speculative", "accepted", "drafted")
        return shown if rate is None else shown | {"acceptance": f"{rate:.2f}"}

    def lines(self) -> list[str]:
        """One line for each method, with the metrics of the whole benchmark."""
        lines = []
        for method in self.keys:
            if texts := self._speed(method):
                texts += self._gain() if method == "speculative" else []
                lines.append(f"{method}: {', '.join([*texts, *_named(self._quality(method))])}")
        limit = "--max_gen_len" if self.task.name in LINES else "--gen_len"
        for method in self.keys:
            if unfinished := self._sums[method]["unfinished"]:
                note = unfinished_note(unfinished, self._sums[method]["answers"], limit=limit)
                lines.append(f"{method}: {note}")
        return lines + ([f"answers have not been scored: {self.scoring_error}"] if self.scoring_error else [])

    def _score(self, entry: Entry) -> None:
        for method, key in self.keys.items():
            scores = self.task.score(entry, scored_text(entry[key]))
            self._scores[method].append(scores)
            self._sums[method].update({name: scores[name] for name in self.task.metrics if name in scores})

    def _quality(self, method: str) -> dict[str, float]:
        """Metrics of all answers together if the task has any, otherwise means of its metrics."""
        entries = list(self._entries.values())
        texts = [scored_text(entry[self.keys[method]]) for entry in entries]
        try:
            corpus = {} if self.scoring_error else self.task.corpus(entries, texts, self._scores[method])
        except Exception as error:
            self.scoring_error = f"{type(error).__name__}: {one_line(error)}"
            corpus = {}
        return {name: metric["score"] for name, metric in corpus.items()} or self._means(method, self.task.metrics)

    def _means(self, method: str, metrics: Sequence[str]) -> dict[str, float]:
        if self.scoring_error or not self._entries:
            return {}
        return {name: self._sums[method][name] / len(self._entries) for name in metrics}

    def _speed(self, method: str) -> list[str]:
        rate = self._ratio(method, "tokens_generated", "seconds")
        return [] if rate is None else [f"{rate:.1f} tok/s"]

    def _gain(self) -> list[str]:
        """Acceptance rate, and speed relative to the target alone."""
        rate = self._ratio("speculative", "accepted", "drafted")
        base, own = (self._ratio(method, "tokens_generated", "seconds") for method in ("target", "speculative"))
        gain = [f"{own / base:.2f}x the target's speed"] if own and base else []
        return gain + ([] if rate is None else [f"acceptance {rate:.2f}"])

    def _ratio(self, method: str, numerator: str, denominator: str) -> float | None:
        """Σ numerator / Σ denominator over the entries; None without any."""
        sums = self._sums[method]
        return sums[numerator] / sums[denominator] if sums[denominator] > 0 else None


def _named(values: dict[str, float]) -> list[str]:
    return [f"{name} {value:.3g}" for name, value in values.items()]


def evaluate(spec: RunSpec, env: DistEnv) -> int:
    """Answer all items of a run and write its files; returns the exit code: 1 if an item failed."""
    header = spec.header({**spec.settings, "methods": list(spec.methods)})
    run = ResumableRun(
        spec.task.name,
        header=header,
        units=len(spec.items),
        output=spec.output,
        env=env,
        progress=spec.progress,
        question_ids=[spec.task.entry(item)["question_id"] for item in spec.items],
    )
    if run.is_complete:
        return run.report_complete()

    pair = env.run_on_all(lambda: spec.pair.load() if run.todo else None)
    runner = ItemRunner(pair, spec.task, spec.generation_settings(pair))
    totals = RunningTotals(spec.task, spec.methods)
    for unit, entry in run.earlier.entries.items():
        totals.add(unit, entry)

    with run.recording(pair):
        for unit in run.todo:
            entry = runner.run(unit, spec.items[unit])
            run.add(unit, entry)
            totals.add(unit, entry)
            run.show_progress(totals.progress())

    entries = run.collect()
    key = method_keys(spec.task.name)["speculative"]
    matches = count_matches(entry[key] for entry in entries if key in entry)
    meta = run.meta(entries, {"equality": matches, **spec.sampling(run.header["pair"]), **spec.origin})
    run.write(encode_results(spec.task.name, entries), meta)
    if not env.is_main:
        return 0

    for unit, entry in enumerate(entries):
        totals.add(unit, entry)  # of other processes
    return run.report(entries, totals.lines() + ([format_match_counts(matches)] if matches else []))


def run_evaluation(args: argparse.Namespace) -> int:
    """Evaluate according to the flags of `evaluation_parser`; returns the exit code: 1 if an item failed.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: finished items are kept.
    """
    if not is_main_rank(args):
        return join_as_worker(args)
    with process_group(args) as env, locked_output(args, env=env) as output:
        fresh_seed = env.shared_seed()
        spec = env.run_on_all(lambda: make_run_spec(args, env=env, output=output, fresh_seed=fresh_seed))
        return evaluate(spec, env)
