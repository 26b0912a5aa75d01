"""The run of `python -m pdevis.calibrate`: choose a schedule whose corrections are fitted along, and write both."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from rich.table import Table

from pdevis.calibrate.calibration_text import CalibrationText
from pdevis.calibrate.choose_schedule import ChosenSchedule
from pdevis.calibrate.fit_corrections import FitSettings, fit_corrections
from pdevis.calibrate.schedule_source import MeasuredParts, check_windows, read_text_for
from pdevis.calibrate.teacher_forcing import ExactStates, OutputChange
from pdevis.config import DraftConfig
from pdevis.drafting.corrections import NO_CORRECTIONS, Corrections, save_corrections
from pdevis.drafting.schedule import Schedule
from pdevis.drafting.wide_layers import PreparedLayer, make_layers
from pdevis.loading.pair_builder import drafts_for_itself
from pdevis.models.stack import DecoderStack
from pdevis.pair import SpeculativePair, load_pair
from pdevis.util.console import StderrLog, make_console, make_table
from pdevis.util.files import locked_new_file
from pdevis.util.labels import format_models
from pdevis.util.provenance import now, versions

SEARCH_POSITIONS = 1024  # of the text that corrections are fitted on while schedules are compared; then on all


def run_calibrate(args: argparse.Namespace) -> int:
    """Choose, fit and write with the flags of `python -m pdevis.calibrate`; returns the exit code.

    Raises:
        ValueError, OSError: a user's mistake or a failing disk, in one line. KeyboardInterrupt: no file was written.
    """
    with locked_new_file(args.output, args.overwrite):
        return _calibrate_into(args)


def _calibrate_into(args: argparse.Namespace) -> int:
    """Choose, fit, write the locked file and show what was chosen."""
    log, draft = StderrLog(), _draft_settings(args)
    try:
        pair = _load(args, log)
        check_windows(draft, len(pair.drafter.layers))
        text = read_text_for(pair.drafter, pair.tokenizer, args.calibration_text)
        run = CalibrationRun(pair.drafter, text, draft, FitSettings(args.ridge, rank=args.rank), log)
        chosen = run.choose(draft.retention, drafts_for_itself=drafts_for_itself(pair.labels))
        corrections = run.fit(chosen.schedule)
    except KeyboardInterrupt:
        print(f"stopped: {args.output} has not been written", file=sys.stderr)
        raise
    save_corrections(args.output, corrections)
    console = make_console()
    for label in format_models(pair.labels):
        console.print(label, markup=False)
    console.print(_result_table(chosen, run.change(chosen.schedule, corrections), run.change(chosen.schedule)))
    console.print(f"schedule: {chosen.schedule}", markup=False)
    size = args.output.stat().st_size / 2**20
    log(f"written: {args.output} ({size:.1f} MiB); use it with --check static --corrections {args.output}")
    return 0


def _load(args: argparse.Namespace, log: StderrLog) -> SpeculativePair:
    """Load the pair, with an exact drafter in this process. Raises ValueError if the drafter is another one."""
    names = ("device", "target_device", "draft_device", "target_precision", "draft_precision", "draft_vocab")
    options = {name: getattr(args, name) for name in names}
    pair = load_pair(args.target_model, args.drafter_model, **options, draft=DraftConfig(mode="exact"), on_progress=log)
    if not isinstance(pair.drafter, DecoderStack):
        pair.close()
        raise ValueError(
            f"--drafter_model {args.drafter_model}: must be a drafter whose layers pdevis runs itself, on one device"
        )
    return pair


def _draft_settings(args: argparse.Namespace) -> DraftConfig:
    given = {field.name: getattr(args, field.name) for field in fields(DraftConfig) if hasattr(args, field.name)}
    return DraftConfig(**given | {"mode": args.draft_mode, "check": "static"})


class CalibrationRun:
    """One drafter and text: chooses a schedule, and fits its corrections."""

    def __init__(
        self,
        stack: DecoderStack,
        text: CalibrationText,
        draft: DraftConfig,
        settings: FitSettings,
        log: Callable[[str], None],
    ) -> None:
        self.stack, self.settings, self.log = stack, settings, log
        log(f"reading {text.tokens} tokens of {text.name}")
        with torch.inference_mode():
            self.fitted = ExactStates(stack, text.fitted, None)
            self.searched = ExactStates(stack, text.fitted, SEARCH_POSITIONS)
        self.measured = MeasuredParts.measure(stack, text, draft, log)
        tokens = len(self.fitted.hidden[0])
        self.provenance = {
            "text": text.name,
            "text_digest": text.digest,
            "tokens": str(tokens),
            "ridge": f"{settings.ridge:g}",
            "rank": str(settings.rank),
            "made": now(),
            "versions": str(versions()),
        }

    def choose(self, retention: float, *, drafts_for_itself: bool) -> ChosenSchedule:
        """Return the fastest schedule that is predicted to keep `retention` with corrections."""
        return self.measured.choose(retention, drafts_for_itself, self.log, self._corrected_layers)

    def fit(self, schedule: Schedule) -> Corrections:
        """Fit the corrections of a schedule."""
        return fit_corrections(
            self.stack, self.fitted, schedule, self.settings, provenance=self.provenance, on_progress=self.log
        )

    def _corrected_layers(self, schedule: Schedule) -> Sequence[PreparedLayer]:
        self.log(f"fitting corrections for {schedule.depth / 2:g} serial layers")
        corrections = fit_corrections(self.stack, self.searched, schedule, self.settings)
        return make_layers(self.stack, schedule, corrections)

    @torch.inference_mode()
    def change(self, schedule: Schedule, corrections: Corrections = NO_CORRECTIONS) -> OutputChange:
        """Measure the change of the output on text that was not fitted."""
        return self.measured.states.change_under(make_layers(self.stack, schedule, corrections))


def _result_table(chosen: ChosenSchedule, corrected: OutputChange, plain: OutputChange) -> Table:
    rows = [
        (name, f"{change.kl:.3f}", f"{change.changed:.3f}", f"{change.retention:.3f}", f"{change.self_retention:.3f}")
        for name, change in (("corrected", corrected), ("without corrections", plain))
    ]
    layers = f"{chosen.schedule.layers} → {chosen.schedule.depth / 2:g} serial layers"
    table = make_table(("", "KL, nats", "changed", "retention", "for itself"), rows)
    table.title = f"{layers}, {chosen.seconds / chosen.exact_seconds:.2f} of their time, on text not fitted"
    table.title_justify = "left"
    return table
