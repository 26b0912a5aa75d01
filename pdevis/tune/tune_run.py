"""The tuning run: load, measure, choose, check the choice, show it, and write the profile."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.loading.catalog import resolve
from pdevis.models.stack import DecoderStack
from pdevis.pair import SpeculativePair, load_pair
from pdevis.profile import DEVICES, Profile, encode_profile, this_machine
from pdevis.tune.acceptance import DRAFTED, Rehearsal, divergences, rehearse
from pdevis.tune.selection import Candidate, best, best_draft_length, best_threads, candidate, round_seconds, rules
from pdevis.tune.timing import WIDTHS, Timed, forward_seconds, thread_counts, thread_seconds
from pdevis.tune.tune_report import Check, Found, evidence
from pdevis.tune.tune_table import show_choice, show_found
from pdevis.util.console import make_console
from pdevis.util.files import prepare_output_file, write_atomic
from pdevis.util.prompts import PROMPTS
from pdevis.util.provenance import hardware, now, versions

THREAD_REPEATS = 3


class Progress:
    """Lines on stderr, each with the seconds since the start."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.begin:4.0f} s] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Sample:
    """A prompt and the target's own greedy text behind it, as ids."""

    prompt: list[int]
    text: list[int]


def run_tune(args: argparse.Namespace) -> int:
    """Tune as the flags of `python -m pdevis.tune` say; returns the exit code.

    Raises:
        ValueError, OSError: a mistake or a failing disk, in one line. KeyboardInterrupt: nothing has been written.
    """
    prepare_output_file(args.output)
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"--output {args.output}: already exists: --overwrite replaces it")
    if args.prompts > len(PROMPTS):
        raise ValueError(f"--prompts: {args.prompts} must be at most {len(PROMPTS)}, the built-in prompts")
    threads, say = torch.get_num_threads(), Progress()
    try:
        results = [tune_pair(args, formats, say) for formats in _formats(args)]
    except KeyboardInterrupt:
        print(f"stopped: {args.output} has not been written", file=sys.stderr)
        raise
    finally:
        torch.set_num_threads(threads)
    console = make_console()
    for _, found in results:
        show_found(console, found)
    profile, found = max(results, key=lambda each: each[1].expected_rate)
    show_choice(console, profile, found, [each for _, each in results])
    others = [each for _, each in results if each is not found]
    write_atomic(args.output, encode_profile(profile, now(), {"versions": versions(), **evidence(found, others)}))
    say(f"written: {args.output}; use it with --profile {args.output}")
    return 0


def tune_pair(args: argparse.Namespace, formats: tuple[str, str], say: Progress) -> tuple[Profile, Found]:
    """Load the models in these formats (target, drafter), measure and choose."""
    asked = {name: getattr(args, name) for name in DEVICES}
    asked |= {"target_model": _lasting(args.target_model), "drafter_model": _lasting(args.drafter_model)}
    asked |= {"target_precision": formats[0], "draft_precision": formats[1]}
    options = {name: value for name, value in asked.items() if not name.endswith("_model")}
    pair = load_pair(asked["target_model"], asked["drafter_model"], **options, on_progress=say)
    if pair.workers:
        pair.close()
        raise ValueError(
            f"--draft_device {asked['draft_device']}: must be one device, not a core: tuning drafts in its own process"
        )
    samples = target_texts(pair, args.prompts, args.length, say)
    longest = max(samples, key=lambda sample: len(sample.prompt) + len(sample.text))
    behind = [*longest.prompt, *longest.text]
    models = {"target": Timed(pair.target, behind), "draft": Timed(pair.drafter, behind)}

    counts, threads = None, None
    if "cpu" in (pair.target.device.type, pair.drafter.device.type):
        say("threads")
        every = thread_counts(this_machine()["cores"], torch.get_num_threads())
        counts = thread_seconds(models, every, THREAD_REPEATS)
        threads = best_threads(counts)
        torch.set_num_threads(threads)
    say(f"forwards over {WIDTHS[0]} to {WIDTHS[-1]} tokens")
    forwards = forward_seconds(models, WIDTHS, args.repeats)
    sublayers = {name: {width: model.sublayers(width) for width in WIDTHS} for name, model in models.items()}
    turns = None
    if isinstance(pair.drafter, DecoderStack):
        turns = _mean_by_layer([divergences(pair.drafter, [*each.prompt, *each.text]) for each in samples])

    candidates = try_rules(args, pair, samples, forwards["target"], say)
    chosen = best(candidates)
    profile = Profile(
        name=args.output.name,
        models=asked,
        draft=chosen.draft,
        gamma=chosen.gamma,
        threads=threads,
        costs=chosen.costs(chosen.gamma),
        pair=pair.labels,
        machine={**this_machine(), **(hardware(pair) or {}), "threads": threads},
    )
    say("the choice against plain decoding")
    check = try_choice(pair, profile, PROMPTS[args.prompts % len(PROMPTS)], args.length)
    gamma = best_draft_length(chosen.pays, chosen.gamma, check.rates["fixed"], check.rates["auto"])
    found = Found(pair.labels, threads, counts, forwards, sublayers, turns, candidates, chosen, gamma, check)
    del pair, models
    gc.collect()  # the next formats need the memory
    return Profile(**{**vars(profile), "gamma": gamma}), found


def target_texts(pair: SpeculativePair, prompts: int, length: int, say: Progress) -> list[Sample]:
    """What the target writes behind built-in prompts; the drafter helps, which changes the time and not the text.

    Raises:
        ValueError: there is nothing to target_sampler a draft by.
    """
    pair.configure(DraftConfig(mode="exact"))
    samples = []
    for number, prompt in enumerate(PROMPTS[:prompts], 1):
        say(f"the target's text, {number} of {prompts}")
        ids = pair.encode(prompt, chat=bool(pair.tokenizer.chat_template))
        room = min(pair.context_length, pair.drafter.context_length) - len(ids) - DRAFTED
        if room < 1:
            continue
        text = pair.generate(ids, DecodeConfig(max_new_tokens=min(length, room), gamma="auto")).ids
        samples.append(Sample(ids, text))
    if not samples:
        raise ValueError("no built-in prompt fits in the models' context: these models cannot be tuned")
    return samples


def try_rules(
    args: argparse.Namespace, pair: SpeculativePair, samples: Sequence[Sample], verify: dict[int, float], say: Progress
) -> list[Candidate]:
    """Rehearse every drafting rule on every text, rules in turn."""
    wanted = rules(args.modes, args.thresholds, isinstance(pair.drafter, DecoderStack))
    rehearsals = [Rehearsal(rule) for rule in wanted]
    for number, sample in enumerate(samples, 1):
        say(f"{len(rehearsals)} drafting rules, text {number} of {len(samples)}")
        for rehearsal in rehearsals if number % 2 else reversed(rehearsals):
            rehearse(rehearsal, pair.drafter, pair.target.vocab_size, sample.prompt, sample.text)
    return [candidate(rehearsal, verify) for rehearsal in rehearsals]


def try_choice(pair: SpeculativePair, profile: Profile, prompt: str, length: int) -> Check:
    """Plain decoding, the profile's rule at its γ, and γ = auto with its costs, in turn behind one prompt."""
    tuned = SpeculativePair(
        pair.target, pair.drafter, pair.tokenizer, pair.eos_ids, profile.draft, pair.labels, profile
    )
    ids = tuned.encode(prompt, chat=bool(pair.tokenizer.chat_template))
    room = min(length, pair.context_length - len(ids))
    if room < 1:
        raise ValueError(f"context of {pair.context_length} tokens: has no room for a built-in prompt")
    stats, written = {}, []
    for name in ("plain", "fixed", "auto"):
        method = "target" if name == "plain" else "speculative"
        decode = DecodeConfig(max_new_tokens=room, gamma="auto" if name == "auto" else profile.gamma, eos_ids=())
        made = tuned.generate(ids, decode, method)
        stats[name] = made.stats
        written.append(made.ids)
    tuned.reset()
    rates = {name: each.new_tokens / each.decode_seconds for name, each in stats.items()}
    alphas = {name: each.acceptance_rate for name, each in stats.items()}
    fixed = stats["fixed"]
    foreseen = fixed.new_tokens / sum(round_seconds(profile.costs, drafted) for drafted in fixed.draft_lengths)
    return Check(prompt, room, rates, alphas, foreseen, all(ids == written[0] for ids in written))


def _formats(args: argparse.Namespace) -> list[tuple[str, str]]:
    asked = args.target_precision, args.draft_precision
    if args.formats and asked != ("auto", "auto"):
        raise ValueError("--formats: names the formats of both models; leave --target_precision, --draft_precision out")
    return list(args.formats or [asked])


def _lasting(name: str) -> str:
    """A model's name that holds in other folders too."""
    if name == "self" or resolve(name).kind != "folder":
        return name
    return str(Path(name).expanduser().absolute())


def _mean_by_layer(tables: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*tables, strict=True)]
