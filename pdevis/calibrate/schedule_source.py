"""ScheduleSource: the static schedules of a drafter, chosen when they are first needed and then kept in a cache.

Choosing takes up to a few minutes. The result is a small JSON file in `schedules` in the cache folder (PDEVIS_CACHE),
whose name is a hash of all that it depends on: the drafter's files and weight format, the calibration text, the device,
and the drafting settings. So a second start costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from pdevis.calibrate.calibration_text import CalibrationText, read_calibration_text
from pdevis.calibrate.choose_schedule import ChosenSchedule, Part, choose_schedule, measure_parts
from pdevis.calibrate.teacher_forcing import ExactStates
from pdevis.config import AUTO, DraftConfig
from pdevis.drafting.corrections import weights_fingerprint
from pdevis.drafting.schedule import Schedule, parse_schedules
from pdevis.drafting.wide_layers import PreparedLayer
from pdevis.loading.model_builder import build_model, model_fingerprint
from pdevis.loading.pair_builder import BuiltPair, drafts_for_itself
from pdevis.models.stack import DecoderStack
from pdevis.profile import this_machine
from pdevis.util.files import cache_root, encode_json, parse_json, read_text, write_atomic

FORMAT = 1  # increase it if the choice would be another one
SCHEDULE_POSITIONS = 256  # of the text at which whole schedules are compared
PART_POSITIONS = 128  # the same for their parts, of which there are about a hundred
NARROW_RETENTION = 0.5  # of what the wide schedule may lose, the narrow one may lose this part
RULE_FIELDS = ("mode", "attention_lanes", "mlp_lanes", "keep_first", "keep_last")  # that the choice depends on


@dataclass(frozen=True)
class ScheduleChoice:
    """A chosen schedule with its predictions: layers' time over the exact one's, KL, changed argmaxes, retention."""

    schedule: str
    seconds_ratio: float
    kl: float
    changed: float
    retention: float

    @classmethod
    def of(cls, chosen: ChosenSchedule) -> ScheduleChoice:
        return cls(
            schedule=str(chosen.schedule),
            seconds_ratio=chosen.seconds / chosen.exact_seconds,
            kl=chosen.change.kl,
            changed=chosen.change.changed,
            retention=chosen.retention,
        )


class ScheduleSource:
    """Chooses schedules for one drafter.

    Args:
        load_drafter: returns the whole drafter on one device. It is called only if a schedule is not in the cache.
        model: a text that identifies the drafter's weights, known before they are read; None: computed from them.
        layers: of the drafter.
        precision: its weight format.
        device: the drafter's.
        tokenizer: of the drafter.
        drafts_for_itself: the target has the drafter's own weights.
        calibration_text: a file of plain text; None: the package's own.
        on_progress: called with a line of text at each stage.
    """

    def __init__(
        self,
        load_drafter: Callable[[], DecoderStack],
        *,
        model: str | None,
        layers: int,
        precision: str,
        device: torch.device,
        tokenizer: Any,
        drafts_for_itself: bool,
        calibration_text: str | PathLike[str] | None = None,
        on_progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.load_drafter = load_drafter
        self.model, self.layers, self.precision, self.device = model, layers, precision, device
        self.tokenizer, self.drafts_for_itself = tokenizer, drafts_for_itself
        self.calibration_text = calibration_text
        self.on_progress = on_progress
        self._measured: dict[tuple[Any, ...], MeasuredParts] = {}  # by the settings that they depend on

    def resolve(self, draft: DraftConfig) -> DraftConfig:
        """Return the settings with the schedules that they ask for; mode "auto" becomes what the schedule does.

        Raises:
            ValueError: a schedule is wrong, the window is larger than the drafter, or the calibration text not usable.
        """
        text, layers = draft.schedule, self.layers
        if text in (None, AUTO):
            check_windows(draft, layers)
            wide = self.choose(draft)
            text = wide.schedule
            if draft.check == "planned":  # a narrow one too
                narrow = self.choose(replace(draft, retention=1 - NARROW_RETENTION * (1 - draft.retention)))
                text = ";".join(dict.fromkeys((text, narrow.schedule)))
        schedules = parse_schedules(text, layers)
        mode = draft.mode
        if mode == AUTO:
            widest = max(schedule.lanes for schedule in schedules)
            depth = min(schedule.depth for schedule in schedules)
            mode = "parallel" if widest > 1 else "skip" if depth < 2 * layers else "exact"
        return replace(draft, mode=mode, schedule=text)

    def choose(self, draft: DraftConfig) -> ScheduleChoice:
        """Return the schedule of the settings, from the cache if it was chosen before."""
        stack = None
        if self.model is None:
            stack = self.load_drafter()
            self.model = weights_fingerprint(stack.weights)
        file = self._cache_file(draft)
        with contextlib.suppress(OSError, ValueError, TypeError):
            return ScheduleChoice(**parse_json(read_text(file)))
        rule = tuple(getattr(draft, name) for name in RULE_FIELDS)
        if rule not in self._measured:
            stack = stack or self.load_drafter()
            text = read_text_for(stack, self.tokenizer, self.calibration_text)
            self.on_progress(f"choosing a static schedule on {text.tokens} tokens of {text.name}")
            self._measured[rule] = MeasuredParts.measure(stack, text, draft, self.on_progress)
        chosen = self._measured[rule].choose(draft.retention, self.drafts_for_itself, self.on_progress)
        choice = ScheduleChoice.of(chosen)
        with contextlib.suppress(OSError):  # without it the next start chooses again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, encode_json(asdict(choice)) + b"\n")
        return choice

    def _cache_file(self, draft: DraftConfig) -> Path:
        machine = this_machine() if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads() if self.device.type == "cpu" else None
        text = None
        if self.calibration_text is not None:
            try:
                text = hashlib.sha256(Path(self.calibration_text).read_bytes()).hexdigest()
            except OSError as error:
                name = str(self.calibration_text)
                raise ValueError(f"calibration_text = {name!r}: cannot be read: {error.strerror or error}") from None
        rule = {name: getattr(draft, name) for name in (*RULE_FIELDS, "retention")}
        facts = [FORMAT, self.model, self.precision, self.drafts_for_itself, machine, threads, text, rule]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return cache_root() / "schedules" / f"{digest}.json"


def source_of_pair(built: BuiltPair, drafter: object, calibration_text: str | PathLike[str] | None) -> ScheduleSource:
    """Return the source of schedules for a pair.

    Args:
        built: the pair.
        drafter: the stack, if it is in this process. Otherwise it is loaded once more while a schedule is chosen.
        calibration_text: as for `ScheduleSource`.
    """
    spec = built.draft_spec
    return ScheduleSource(
        lambda: drafter if isinstance(drafter, DecoderStack) else build_model(spec),
        model=model_fingerprint(spec),
        layers=spec.config.num_hidden_layers,
        precision=spec.precision,
        device=spec.device,
        tokenizer=built.tokenizer,
        drafts_for_itself=drafts_for_itself(built.labels),
        calibration_text=calibration_text,
    )


def read_text_for(stack: DecoderStack, tokenizer: Any, calibration_text: str | PathLike[str] | None) -> CalibrationText:
    """Read the calibration text for a drafter. Raises ValueError as `read_calibration_text`."""
    return read_calibration_text(tokenizer, stack.vocab_size, stack.context_length, calibration_text)


def check_windows(draft: DraftConfig, layers: int) -> None:
    """Raise ValueError if a group may have more lanes than the drafter has layers."""
    if draft.mode != "skip" and draft.attention_lanes > layers:
        name = "attention_window" if draft.attention_window else "window"
        raise ValueError(f"{name} = {draft.attention_lanes}: must be at most {layers}, the drafter's number of layers")


@dataclass(frozen=True)
class MeasuredParts:
    """The costs and effects of the parts that schedules are made of, and the states that schedules are measured on."""

    stack: DecoderStack
    states: ExactStates
    parts: Sequence[Part]

    @classmethod
    def measure(
        cls, stack: DecoderStack, text: CalibrationText, draft: DraftConfig, on_progress: Callable[[str], None]
    ) -> MeasuredParts:
        """Measure on a text; takes up to a few minutes."""
        with torch.inference_mode():
            states = ExactStates(stack, text.held_out, PART_POSITIONS)
            parts = measure_parts(stack, states, draft, text.held_out[0], on_progress)
            return cls(stack, ExactStates(stack, text.held_out, SCHEDULE_POSITIONS), parts)

    def choose(
        self,
        retention: float,
        drafts_for_itself: bool,
        on_progress: Callable[[str], None],
        prepare: Callable[[Schedule], Sequence[PreparedLayer]] | None = None,
    ) -> ChosenSchedule:
        """Choose the fastest schedule that is predicted to keep this part of the acceptance rate.

        Arguments as for `choose_schedule`.
        """
        return choose_schedule(
            self.stack,
            self.states,
            self.parts,
            retention,
            on_progress,
            drafts_for_itself=drafts_for_itself,
            prepare=prepare,
        )
