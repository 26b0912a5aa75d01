"""The tuning run: load, measure, choose, check the choice, print it, and write the profile."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pdevis.config import DecodeConfig, DraftConfig
from pdevis.loading.catalog import resolve
from pdevis.models.stack import DecoderStack
from pdevis.pair import SpeculativePair, load_pair
from pdevis.profile import DEVICE_FLAGS, Profile, encode_profile, this_machine
from pdevis.tune.acceptance import REPLAY_GAMMA, DraftReplay, layer_divergences
from pdevis.tune.selection import (
    Candidate,
    choose_candidate,
    choose_gamma,
    choose_threads,
    predicted_round_seconds,
    rules_to_try,
    static_rules,
)
from pdevis.tune.timing import WIDTHS, TimedModel, thread_counts, time_forwards, time_thread_counts
from pdevis.tune.tune_report import ChoiceCheck, Measurements, TuneResult, describe_result
from pdevis.tune.tune_table import show_choice, show_measurements
from pdevis.util.console import StderrLog, make_console
from pdevis.util.files import expand_user, locked_new_file, write_atomic
from pdevis.util.prompts import PROMPTS
from pdevis.util.provenance import hardware, now, versions

THREAD_REPEATS = 3


@dataclass(frozen=True)
class TargetText:
    """A prompt and the text that the target has written after it by greedy decoding, as ids."""

    prompt: list[int]
    text: list[int]


def run_tune(args: argparse.Namespace) -> int:
    """Tune with the flags of `python -m pdevis.tune`, and return the exit code.

    Raises:
        ValueError, OSError: a user's mistake or a failing disk, in one line. KeyboardInterrupt: no file was written.
    """
    with locked_new_file(args.output, args.overwrite):
        return _tune_into(args)


def _tune_into(args: argparse.Namespace) -> int:
    """Tune, write the locked profile and show it."""
    if args.prompts > len(PROMPTS):
        raise ValueError(f"--prompts: {args.prompts} must be at most {len(PROMPTS)}, the built-in prompts")
    initial_threads, log = torch.get_num_threads(), StderrLog()
    try:
        results = [tune_formats(args, target, drafter, log) for target, drafter in _format_pairs(args)]
    except KeyboardInterrupt:
        print(f"stopped: {args.output} has not been written", file=sys.stderr)
        raise
    finally:
        torch.set_num_threads(initial_threads)
    best = max(results, key=lambda result: result.expected_rate)
    evidence = {"versions": versions(), **describe_result(best, [result for result in results if result is not best])}
    try:  # written before anything is printed, and printed if it cannot be written: measuring takes minutes
        write_atomic(args.output, encode_profile(best.profile, now(), evidence))
    finally:
        _show(results, best)
    log(f"written: {args.output}; use it with --profile {args.output}")
    return 0


def _show(results: Sequence[TuneResult], best: TuneResult) -> None:
    console = make_console()
    for result in results:
        show_measurements(console, result)
    show_choice(console, best, results)


def tune_formats(args: argparse.Namespace, target_format: str, drafter_format: str, log: StderrLog) -> TuneResult:
    """Load the models in these weight formats, measure them, and choose."""
    models = {name: getattr(args, name) for name in DEVICE_FLAGS} | {
        "target_model": _absolute_name(args.target_model),
        "drafter_model": _absolute_name(args.drafter_model),
        "target_precision": target_format,
        "draft_precision": drafter_format,
    }
    pair = _load(models, args.calibration_text, log)
    texts = write_texts(pair, args.prompts, args.length, log)
    measured = measure_models(pair, texts, args.repeats, log)
    has_sublayers = isinstance(pair.drafter, DecoderStack)
    rules = rules_to_try(args.modes, args.thresholds, has_sublayers)
    if has_sublayers:
        rules += _choose_schedules(pair, static_rules(args.modes, args.retentions))
    candidates = try_rules(rules, pair, texts, measured.forward_seconds["target"], log)
    chosen = choose_candidate(candidates)
    profile = Profile(
        name=args.output.name,
        models=models,
        draft=chosen.rule,
        gamma=chosen.gamma,
        threads=measured.threads,
        costs=chosen.costs(chosen.gamma),
        pair=pair.labels,
        machine={**this_machine(), **(hardware(pair) or {}), "threads": measured.threads},
    )
    log("the choice against plain decoding")
    check = check_choice(pair, profile, PROMPTS[args.prompts % len(PROMPTS)], args.length)
    gamma = choose_gamma(
        chosen.drafting_pays, chosen.gamma, fixed_rate=check.rates["fixed"], auto_rate=check.rates["auto"]
    )
    del pair
    gc.collect()  # the next formats need the memory
    return TuneResult(replace(profile, gamma=gamma), measured, candidates=candidates, chosen=chosen, check=check)


def _load(models: dict[str, str | None], calibration_text: str | None, log: StderrLog) -> SpeculativePair:
    options = {name: value for name, value in models.items() if not name.endswith("_model")}
    options["calibration_text"] = calibration_text
    pair = load_pair(models["target_model"], models["drafter_model"], **options, on_progress=log)
    if pair.workers:
        pair.close()
        raise ValueError(
            f"--draft_device {models['draft_device']}: must be one device and not a core, since tuning drafts in its "
            "own process"
        )
    return pair


def write_texts(pair: SpeculativePair, prompts: int, length: int, log: StderrLog) -> list[TargetText]:
    """Let the target write after built-in prompts. It decodes speculatively, which does not change the text.

    Raises:
        ValueError: no prompt fits, so that drafts cannot be verified.
    """
    pair.configure(DraftConfig(mode="exact"))
    texts = []
    for number, prompt in enumerate(PROMPTS[:prompts], 1):
        log(f"the target's text, {number} of {prompts}")
        ids = pair.encode(prompt, chat=bool(pair.tokenizer.chat_template))
        max_tokens = min(pair.context_length, pair.drafter.context_length) - len(ids) - REPLAY_GAMMA
        if max_tokens < 1:
            continue
        generation = pair.generate(ids, DecodeConfig(max_new_tokens=min(length, max_tokens), gamma="auto"))
        texts.append(TargetText(ids, generation.ids))
    if not texts:
        raise ValueError("no built-in prompt fits in the models' context: these models cannot be tuned")
    return texts


def measure_models(pair: SpeculativePair, texts: Sequence[TargetText], repeats: int, log: StderrLog) -> Measurements:
    """Time both models, and measure the drafter's divergences. torch's thread count is the fastest one afterwards."""
    longest = max((text.prompt + text.text for text in texts), key=len)
    models = {"target": TimedModel(pair.target, longest), "draft": TimedModel(pair.drafter, longest)}
    thread_seconds, threads = None, None
    if "cpu" in (pair.target.device.type, pair.drafter.device.type):
        log("threads")
        counts = thread_counts(this_machine()["cores"], torch.get_num_threads())
        thread_seconds = time_thread_counts(models, counts, THREAD_REPEATS)
        threads = choose_threads(thread_seconds)
        torch.set_num_threads(threads)
    log(f"forwards over {WIDTHS[0]} to {WIDTHS[-1]} tokens")
    forward_seconds = time_forwards(models, WIDTHS, repeats)
    sublayer_seconds = {
        name: {width: model.sublayer_seconds(width) for width in WIDTHS} for name, model in models.items()
    }
    divergences = None
    if isinstance(pair.drafter, DecoderStack):
        by_text = [layer_divergences(pair.drafter, text.prompt + text.text) for text in texts]
        divergences = [sum(values) / len(values) for values in zip(*by_text, strict=True)]
    return Measurements(
        threads=threads,
        thread_seconds=thread_seconds,
        forward_seconds=forward_seconds,
        sublayer_seconds=sublayer_seconds,
        divergences=divergences,
    )


def try_rules(
    rules: Sequence[DraftConfig],
    pair: SpeculativePair,
    texts: Sequence[TargetText],
    verify_seconds: dict[int, float],
    log: StderrLog,
) -> list[Candidate]:
    """Replay every text under every drafting rule, the rules interleaved."""
    replays = [DraftReplay(rule) for rule in rules]
    for number, text in enumerate(texts, 1):
        log(f"{len(rules)} drafting rules, text {number} of {len(texts)}")
        for replay in replays if number % 2 else reversed(replays):
            replay.add_text(pair.drafter, pair.target.vocab_size, text.prompt, text.text)
    return [Candidate.from_replay(replay, verify_seconds) for replay in replays]


def _choose_schedules(pair: SpeculativePair, rules: Sequence[DraftConfig]) -> list[DraftConfig]:
    """Return the rules with the static schedules that are chosen for them; not those that come out as exact."""
    chosen = [pair.resolve(rule) for rule in rules]
    unique = {rule.schedule: rule for rule in reversed(chosen) if rule.mode != "exact"}
    return list(unique.values())[::-1]


def check_choice(pair: SpeculativePair, profile: Profile, prompt: str, length: int) -> ChoiceCheck:
    """Compare plain decoding, the profile's rule at its γ, and γ = auto that begins with its costs, on one prompt."""
    tuned = SpeculativePair(
        pair.target,
        pair.drafter,
        tokenizer=pair.tokenizer,
        eos_ids=pair.eos_ids,
        draft=profile.draft,
        labels=pair.labels,
        profile=profile,
    )
    ids = tuned.encode(prompt, chat=bool(pair.tokenizer.chat_template))
    new_tokens = min(length, pair.context_length - len(ids))
    if new_tokens < 1:
        raise ValueError(f"context of {pair.context_length} tokens: is too short for a built-in prompt")
    generations = {}
    for run in ("plain", "fixed", "auto"):
        gamma = "auto" if run == "auto" else profile.gamma
        config = DecodeConfig(max_new_tokens=new_tokens, gamma=gamma, eos_ids=())
        generations[run] = tuned.generate(ids, config, "target" if run == "plain" else "speculative")
    tuned.reset()
    stats = {run: generation.stats for run, generation in generations.items()}
    fixed_seconds = sum(predicted_round_seconds(profile.costs, drafted) for drafted in stats["fixed"].draft_lengths)
    return ChoiceCheck(
        prompt=prompt,
        new_tokens=new_tokens,
        rates={run: sums.new_tokens / sums.decode_seconds for run, sums in stats.items()},
        acceptance_rates={run: sums.acceptance_rate for run, sums in stats.items()},
        predicted_rate=stats["fixed"].new_tokens / fixed_seconds,
        same_tokens=all(generation.ids == generations["plain"].ids for generation in generations.values()),
    )


def _format_pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return (target, drafter) formats. Raises ValueError if they are given twice."""
    single = args.target_precision, args.draft_precision
    if args.formats and single != ("auto", "auto"):
        raise ValueError("--formats: names the formats of both models; leave --target_precision, --draft_precision out")
    return list(args.formats or [single])


def _absolute_name(name: str) -> str:
    """Return a model's name such that it is valid in every working directory."""
    if name == "self" or resolve(name).kind != "folder":
        return name
    return str(expand_user(name).absolute())
