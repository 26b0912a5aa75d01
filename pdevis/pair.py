"""`SpeculativePair` and `load_pair`: load a target and a drafter, and generate text with them.

    from pdevis import load_pair, DecodeConfig
    pair = load_pair("smollm2-135m")
    print(pair.generate("Why is the sky blue?", DecodeConfig(max_new_tokens=64)).text)

Text lives here and above; everything below knows token ids only.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from pdevis.config import AUTO, DEFAULT, METHODS, DecodeConfig, DraftConfig
from pdevis.controls.resolve import given_config, resolve_controls
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.gamma import AutoGamma, gamma_policy
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.devices import use_all_cores
from pdevis.drafting.corrections import load_corrections
from pdevis.drafting.drafter import Drafter
from pdevis.drafting.rule import describe_rule, resolve_rule, with_schedules
from pdevis.drafting.schedule import describe_depths
from pdevis.generation import DecodeStats, Generation
from pdevis.loading.model_builder import build_model
from pdevis.loading.pair_builder import BuiltPair, PairSpec, build_pair, check_graphs
from pdevis.loading.weights.families import unsupported_reason
from pdevis.models.causal_lm import CausalLM
from pdevis.models.stack import DecoderStack
from pdevis.models.static.start import start_pair_graphs
from pdevis.parallel.remote import DrafterBackend, RemoteDrafter, RemoteModel, follow_main_rank, start_drafter
from pdevis.profile import Profile, read_profile
from pdevis.text import GenerationStream, Prompt, check_ids, encode_prompt
from pdevis.trace import Tracer
from pdevis.util.validation import DraftingWarning, check_kind, check_one_of

if TYPE_CHECKING:
    from pdevis.calibrate.schedule_source import ScheduleSource


class SpeculativePair:
    """A target and a drafter that share a tokenizer; one generation at a time.

    Made by `load_pair`, or from any two models that implement the `CausalLM` protocol.

    Args:
        target, drafter: the models; their caches belong to this object. The drafter may be a `DrafterBackend`,
            which `close` then stops.
        tokenizer: the transformers tokenizer of both.
        eos_ids: ids that end the target's text.
        draft: drafting settings.
        labels: names of models, devices and weight formats for `describe`.
        profile: the mode that "auto" becomes, and the costs that γ = auto begins with.
        tracer: records every round of speculative decoding.
        schedules: makes the source of static schedules when one is needed; None: they must be given.
        on_progress: called with lines of text while a schedule is chosen.
        defaults: settings of a generation that is given none.

    `with load_pair(…) as pair:` closes it at the end.

    Raises:
        ValueError: if the drafter cannot run in the mode asked for.
    """

    def __init__(
        self,
        target: CausalLM,
        drafter: CausalLM | DrafterBackend,
        tokenizer: Any,
        eos_ids: tuple[int, ...] = (),
        draft: DraftConfig | None = None,
        labels: dict[str, str] | None = None,
        profile: Profile | None = None,
        tracer: Tracer | None = None,
        schedules: Callable[[], ScheduleSource] | None = None,
        on_progress: Callable[[str], None] = lambda line: None,
        defaults: DecodeConfig | None = None,
    ) -> None:
        self.target = target
        self.workers = drafter if isinstance(drafter, DrafterBackend) else None
        self.drafter: CausalLM = RemoteModel(self.workers) if self.workers else drafter
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.defaults = defaults or DecodeConfig()
        self.labels = labels or {}
        self.profile = profile
        self.tracer = tracer
        self._make_schedules = schedules
        self._schedules: ScheduleSource | None = None
        self.on_progress = on_progress
        self._running: GenerationStream | None = None
        self._has_warned = False
        self.make_verifier: Callable[[CausalLM], Verifier] = Verifier  # of speculative decoding
        self._autos: dict[DraftConfig, AutoGamma] = {}
        self.configure(DraftConfig() if draft is None else draft)

    def __enter__(self) -> SpeculativePair:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def draft(self) -> DraftConfig:
        """The drafting settings as given."""
        return self._draft

    @property
    def mode(self) -> str:
        """The drafting mode in use, "auto" resolved."""
        return self._drafting.config.mode

    @property
    def context_length(self) -> int:
        return self.target.context_length

    def configure(self, draft: DraftConfig) -> None:
        """Change the drafting settings from the next generation on. Raises ValueError like the constructor."""
        check_kind("draft", draft, DraftConfig)
        self._stop_running()
        resolved, profile, workers = self.resolve(draft), self.profile, self.workers
        traced = self.tracer is not None
        if workers:
            self._drafting: Drafter | RemoteDrafter = RemoteDrafter(self.drafter, resolved, traced=traced)
        else:
            self._drafting = Drafter(self.drafter, resolved, self.target.vocab_size, traced=traced)
        # The learnt costs of these settings are kept while others are tried.
        known = profile.costs_for(resolved, self.labels) if profile else None
        self._auto = self._autos.setdefault(resolved, AutoGamma(known))
        self._draft = draft

    def resolve(self, draft: DraftConfig) -> DraftConfig:
        """Return the settings with mode and static schedules resolved. Raises ValueError like the constructor."""
        workers = self.workers
        has_sublayers = workers.has_sublayer_access if workers else isinstance(self.drafter, DecoderStack)
        return resolve_rule(
            with_schedules(draft, has_sublayers, self._find_schedules if self._make_schedules else None),
            has_sublayers,
            tuned=self.profile.draft if self.profile else None,
            devices=workers.devices if workers else 1,
            splits_mlps=workers.splits_mlps if workers else False,
        )

    def _find_schedules(self) -> ScheduleSource:
        """Return the source of static schedules, made at its first use."""
        self._schedules = self._schedules or self._make_schedules()
        self._schedules.on_progress = self.on_progress
        return self._schedules

    def describe(self) -> dict[str, Any]:
        """Return models, devices, weight formats, drafting settings and the profile in use, ready for JSON."""
        draft = self._drafting.config
        about = self.labels | describe_rule(draft)
        if draft.uses_prepared_schedules:
            about["serial_layers"] = self.serial_layers()
        return about | (self.profile.describe(self.labels) if self.profile else {})

    @property
    def added_bytes(self) -> int:
        """Memory of the wide layers that the exact drafter would not need; 0 for a drafter in other processes."""
        engine = getattr(self._drafting, "engine", None)
        return sum(prepared.added_bytes for prepared in getattr(engine, "prepared", ()))

    def serial_layers(self) -> str | None:
        """Return what static schedules do to the number of serial layers, as in "24 → 14"; None without."""
        draft = self._drafting.config
        if not draft.uses_prepared_schedules:
            return None
        layers = self.workers.load_spec.config.num_hidden_layers if self.workers else len(self.drafter.layers)
        return describe_depths(draft.schedule, layers)

    def reset(self) -> None:
        """Clear both KV caches."""
        self._stop_running()
        self.target.rewind(0)
        self.drafter.rewind(0)

    def encode(self, prompt: Prompt, chat: bool = True) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            prompt: text, [{"role": …, "content": …}, …], or ids, which are returned unchanged.
            chat: put text into the model's chat template as one user message; False: encode the text alone.

        Raises:
            ValueError: for an empty prompt, or if the tokenizer has no chat template.
        """
        return encode_prompt(self.tokenizer, prompt, chat, self.labels.get("target", "the target"))

    def stream(
        self, prompt: Prompt, config: DecodeConfig | None = None, method: str = "speculative", **changes: Any
    ) -> GenerationStream:
        """Decode a prompt; iterating the result yields a `TokenEvent` per confirmed token.

        Args:
            prompt: text or messages (put into the chat template), or ids: a list, or a tensor or array [T] or [1, T].
            config: decoding settings; None: the pair's `defaults`.
            method: "speculative", or "target" / "drafter" for plain decoding of one model.
            changes: fields of `DecodeConfig` that replace those of `config`, as in `max_new_tokens=64`.

        Raises:
            ValueError: for an unknown method or setting, an empty prompt, or one that leaves no room in the context.
        """
        check_one_of("method", method, METHODS)
        config = given_config(config, changes, self.defaults)
        ids = self.encode(prompt)
        model = self.drafter if method == "drafter" else self.target
        check_ids(ids, model.vocab_size, model.context_length)
        config, ends_text = resolve_controls(config, self.tokenizer, eos_ids=self.eos_ids, prompt=ids, model=model)
        if config.overlap and method == "speculative" and not (self.workers and self.workers.concurrent):
            raise ValueError("overlap = True: must be given to load_pair too, which starts the drafter's own process")
        self._stop_running()
        stats = DecodeStats(method=method, mode=self.mode if method == "speculative" else "exact")
        if method != "speculative":
            events = autoregressive(Verifier(model), ids, config=config, stats=stats, ends_text=ends_text)
        else:
            if self.tracer:
                self.tracer.begin(self.describe(), prompt_tokens=len(ids), config=config)
            events = speculative(
                self.make_verifier(self.target),
                self._drafting,
                prompt=ids,
                config=config,
                stats=stats,
                policy=gamma_policy(config, self._auto),
                recorder=self.tracer,
                ends_text=ends_text,
            )
        self._running = GenerationStream(events, stats, self.tokenizer, self._warn_of_invalid_drafts)
        return self._running

    def generate(
        self, prompt: Prompt, config: DecodeConfig | None = None, method: str = "speculative", **changes: Any
    ) -> Generation:
        """Decode to the end. Arguments and errors as for `stream`."""
        stream = self.stream(prompt, config, method, **changes)
        for _ in stream:
            pass
        return Generation(stream.ids, stream.text, stream.stats)

    def _warn_of_invalid_drafts(self, stats: DecodeStats) -> None:
        """Say once that the drafter's logits were not finite, and what helps."""
        if stats.invalid_drafts and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{stats.invalid_drafts} of {stats.rounds} drafts ended at logits that are not finite, and the target "
                "wrote on alone; use another draft_precision, such as bfloat16 or float32",
                DraftingWarning,
                stacklevel=3,
            )

    def close(self) -> None:
        """Stop the drafter's worker processes, if any, and give this process all of its cores back."""
        self._stop_running()
        if self.workers:
            self.workers.close()
            use_all_cores()

    def recover(self) -> None:
        """Load the drafter into this process, on one device, after its worker processes have failed (`WorkerError`)."""
        workers, self.workers = self.workers, None
        if workers:
            workers.close()
            use_all_cores()
            self.drafter = build_model(workers.load_spec)
            self.labels["draft_device"] = str(workers.load_spec.device)
            self.configure(self._draft)

    def _stop_running(self) -> None:
        """Close the previous generation: two cannot share the caches."""
        if self._running is not None:
            self._running.close()
            self._running = None


def load_pair(
    target: str,
    drafter: str = "self",
    device: str | None = None,
    target_device: str | None = None,
    draft_device: str | None = None,
    target_precision: str = "auto",
    draft_precision: str = "auto",
    draft: DraftConfig | None = None,
    on_progress: Callable[[str], None] | None = None,
    profile: Profile | str | PathLike[str] | None = None,
    draft_vocab: int | None = None,
    graphs: str = AUTO,
    compile: bool = False,
    thinking: str = AUTO,
    overlap: bool = False,
    trace: str | PathLike[str] | None = None,
    calibration_text: str | PathLike[str] | None = None,
    sampling: str = DEFAULT,
) -> SpeculativePair:
    """Load a target and a drafter.

    Args:
        target: catalog key, hub id or local folder.
        drafter: likewise, or "self" for the target's own weights (in the drafter's weight format).
        device: for both models; None: cuda if there, else cpu. target_device and draft_device override it.
        target_precision, draft_precision: auto, float32, float64, bfloat16, float16; on CPU packed, int8; on CUDA nf4.
        draft: drafting settings; None: the profile's, else the defaults.
        on_progress: called with a line of text at each stage.
        profile: result of `python -m pdevis.tune`, or its file: sets torch's thread count for this process, and the
            mode and costs that "auto" uses. Models, devices, formats and γ come from the arguments alone.
        draft_vocab: the drafter proposes ids below this only, so that its output head is smaller; None: all.
        graphs: "on": short forwards in static shapes through torch.compile, on CUDA as graphs; "auto": on CUDA; "off".
        compile: the same as graphs="on".
        thinking: "on" or "off", for chat templates that have this switch; "auto": their own default.
        overlap: start the drafter in a separate process, so that `DecodeConfig(overlap=True)` can draft ahead.
        trace: a new file for the rounds of all generations and the drafter's layer similarities (pdevis.simulate).
        calibration_text: file of plain text on which static schedules are chosen; None: a text of the package.
        sampling: "model": a generation that is given no settings uses those in the target's generation config.

    Several devices for the drafter ("cuda:0,cuda:1", "cpu:0,cpu:1") hold part of its layers each, in worker processes.
    Under torchrun, with target_device = "ranks", only rank 0 runs the program: on others this serves it and then exits.

    Raises:
        ValueError: for an unknown or unreachable model, tokenizers that differ, a device or format that does not exist.
    """
    if draft is not None:
        check_kind("draft", draft, DraftConfig)
    if profile is not None and not isinstance(profile, Profile):
        profile = read_profile(profile)
    if profile:
        draft = draft or profile.draft
        profile.use_threads()
    devices = {"target_device": target_device or device, "draft_device": draft_device or device}
    formats = {"target_precision": target_precision, "draft_precision": draft_precision, "draft_vocab": draft_vocab}
    ways = {"overlap": overlap, "graphs": "on" if compile else graphs, "thinking": thinking, "sampling": sampling}
    spec = PairSpec(target, drafter, mode=draft.mode if draft else AUTO, **devices, **formats, **ways)
    return _load(spec, draft, _LoadOptions(profile, trace, calibration_text, on_progress or (lambda line: None)))


@dataclass(frozen=True)
class _LoadOptions:
    """Arguments of `load_pair` that concern the pair and not its models."""

    profile: Profile | None
    trace: str | PathLike[str] | None
    calibration_text: str | PathLike[str] | None
    on_progress: Callable[[str], None]


def _load(spec: PairSpec, draft: DraftConfig | None, options: _LoadOptions) -> SpeculativePair:
    trace, on_progress = options.trace, options.on_progress
    if draft and draft.corrections:
        load_corrections(draft.corrections)  # a mistake is found before the models are loaded
    tracer = Tracer(trace) if trace else None
    built = build_pair(spec, on_progress)
    if tracer:
        config = built.draft_spec.config
        if reason := unsupported_reason(config):
            raise ValueError(f"--trace {trace}: needs a drafter that runs layer by layer, not {reason}")
        tracer.describe_drafter(config, built.draft_spec.head_rows)
    check_graphs(built, spec.graphs)
    if built.channel and built.channel.ranks.rank > 0:
        follow_main_rank(built)
        sys.exit(0)
    if tracer:
        tracer.writer.create()
    drafter = start_drafter(built, spec.graphs, on_progress)
    has_sublayers = not unsupported_reason(built.draft_spec.config)
    pair = SpeculativePair(
        built.target,
        drafter,
        tokenizer=built.tokenizer,
        eos_ids=built.eos_ids,
        draft=draft,
        labels=built.labels,
        profile=options.profile,
        tracer=tracer,
        schedules=partial(_schedule_source, built, drafter, options) if has_sublayers else None,
        on_progress=on_progress,
        defaults=built.defaults,
    )
    pair.labels |= start_pair_graphs(pair, spec.graphs, on_progress)
    if pair.added_bytes:
        on_progress(f"note: the static schedule adds {pair.added_bytes / 1e9:.2f} GB of weights")
    return pair


def _schedule_source(built: BuiltPair, drafter: CausalLM | DrafterBackend, options: _LoadOptions) -> ScheduleSource:
    """Return what chooses static schedules for the drafter."""
    from pdevis.calibrate.schedule_source import source_of_pair  # most runs need none of its modules

    return source_of_pair(built, drafter, options.calibration_text)
