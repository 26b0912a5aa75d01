"""Settings of drafting and decoding.

`DraftConfig` and `DecodeConfig` are frozen and check themselves: a value that a user can get wrong raises `ValueError`
naming the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pdevis.util.validation import check_bool, check_integer, check_number, check_one_of

AUTO, RANKS = "auto", "ranks"  # ranks, as a device: the processes that torchrun has started
DEFAULT, MODEL = "default", "model"
SUBLAYER_MODES = ("skip", "parallel")  # drop layers or run them together, so they need access to sublayers
MODES = (AUTO, "exact", *SUBLAYER_MODES)
CHECKS = ("inline", "planned", "static")
PROCESSING = (  # fields of `DecodeConfig` that change logits, and have a flag
    "min_p",
    "min_new_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "suppress_tokens",
)
MODEL_FIELDS = (  # fields of `DecodeConfig` that a model's generation config can set
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "logit_bias",
    "suppress_tokens",
    "min_new_tokens",
    "stop",
)
SAMPLING = (DEFAULT, MODEL)  # whose values `MODEL_FIELDS` have unless they are given: this package's, the model's
METHODS = ("speculative", "target", "drafter")  # of decoding a text: with both models, or with one of them


@dataclass(frozen=True)
class DraftConfig:
    """Settings of drafting: the rule for the drafter's layers (`mode`), when it is checked (`check`), and its bounds.

    Args:
        mode: `exact` (plain drafter), `skip` (drop redundant layers), `parallel` (run layers together), or `auto`.
        threshold: τ, a cosine. A layer is redundant, a lane is kept, if its cosine is greater. Above 1: never.
        check: `inline` decides per draft token, `planned` once per round from the calibration pass, `static` once per
            pair, from calibration text: its groups run as wide layers.
        window: W, layers that start from one hidden state at the same time.
        attention_window: lanes of attention in a group; None: `window`.
        mlp_window: lanes of MLP inside a group; None: min(`window`, 2), since MLPs tolerate less.
        keep_first, keep_last: layers at the two ends that are never dropped and always run alone.
        calibrate: recompute the confirmed tokens' approximate KV entries exactly, once per round.
        schedule: groups of the static schedule, as `drafting.schedule.parse_schedule` reads them; "auto": chosen from
            calibration text; None: the same if the check is static. If the check is planned and this is not None, each
            round uses the fastest of these prepared schedules that the threshold allows; ";" separates several.
        retention: of a schedule that is chosen from calibration text: the part of its exact acceptance rate that the
            drafter is predicted to keep at least.
        stagger: static: each MLP of a group reads the attention updates up to its own layer's, instead of all.
        corrections: file of `python -m pdevis.calibrate`: a static schedule, which is used, with its corrections.
    """

    mode: Literal["auto", "exact", "skip", "parallel"] = "auto"
    threshold: float = 0.9
    check: Literal["inline", "planned", "static"] = "planned"
    window: int = 2
    attention_window: int | None = None
    mlp_window: int | None = None
    keep_first: int = 2
    keep_last: int = 1
    calibrate: bool = True
    schedule: str | None = None
    retention: float = 0.95
    stagger: bool = False
    corrections: str | None = None

    def __post_init__(self) -> None:
        check_one_of("mode", self.mode, MODES)
        check_one_of("check", self.check, CHECKS)
        check_number("threshold", self.threshold)
        check_integer("window", self.window, minimum=1)
        for name in ("attention_window", "mlp_window"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        check_integer("keep_first", self.keep_first, minimum=0)
        check_integer("keep_last", self.keep_last, minimum=0)
        check_bool("calibrate", self.calibrate)
        check_bool("stagger", self.stagger)
        check_number("retention", self.retention, minimum=0, maximum=1)
        if not isinstance(self.schedule, str | None) or not (self.schedule is None or self.schedule.strip()):
            raise ValueError(f"schedule = {self.schedule!r}: must be groups such as 0-1,2+3,4, or {AUTO}")
        if self.schedule is not None and self.check == "inline":
            raise ValueError(f"schedule = {self.schedule!r}: needs check = 'static' or 'planned', not 'inline'")
        if self.check == "planned" and not self.calibrate and self.mode in SUBLAYER_MODES:
            raise ValueError(
                "check = 'planned' with calibrate = False: must be 'inline', as calibration makes the schedules"
            )
        self._check_corrections()

    def _check_corrections(self) -> None:
        if self.corrections is None:
            return
        if not isinstance(self.corrections, str) or not self.corrections:
            raise ValueError(f"corrections = {self.corrections!r}: must be the name of a file")
        if self.check == "inline":
            raise ValueError(f"corrections = {self.corrections!r}: needs check = 'static' or 'planned', not 'inline'")
        if self.stagger:
            raise ValueError(f"corrections = {self.corrections!r}: are for wide layers, so stagger must be False")

    @property
    def asks_for_schedules(self) -> bool:
        """True if schedules are fixed when the pair is loaded, unless the mode is or becomes "exact"."""
        given = self.schedule is not None or self.corrections is not None
        return self.mode != "exact" and (self.check == "static" or given)

    @property
    def uses_prepared_schedules(self) -> bool:
        """True if the mode is resolved, and groups of schedules that are fixed when the pair is loaded run as wide
        layers."""
        return self.mode != AUTO and self.asks_for_schedules

    @property
    def attention_lanes(self) -> int:
        return self.attention_window or self.window

    @property
    def mlp_lanes(self) -> int:
        return self.mlp_window or min(self.window, 2)


@dataclass(frozen=True)
class DecodeConfig:
    """Settings of one generation.

    Args:
        max_new_tokens: limit on the tokens written, EOS included.
        gamma: γ, draft tokens per round; "auto" chooses in every round the number that maximizes expected tokens per
            second, 0 if plain decoding is faster.
        temperature: 0 is greedy (argmax, no random numbers); above 0 both models sample with these settings.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
        seed: of this generation's own random generators; None: a new random seed.
        eos_ids: ids that end the text; None: the target's generation config, (): nothing ends it before the limit.
        reuse_prefix: keep the cache entries of the prefix that this prompt shares with the last generation.
        overlap: the drafter drafts ahead while the target verifies; it must run in a separate process.
        min_p: keep tokens whose probability is at least this part of the most probable one's; 0 keeps all.
        min_new_tokens: no token of `eos_ids` before this many new tokens.
        repetition_penalty: logits of tokens in prompt or text are divided by it (multiplied if negative); 1: none.
        presence_penalty, frequency_penalty: subtracted from the logits of tokens that the text has, once and per time.
        logit_bias: a number for each id, which is added to its logit.
        suppress_tokens: ids that are never written.
        processors: further functions (ids [1, N], logits [1, V]) -> logits, such as a `LogitsProcessorList` of
            transformers; without memory, and for a drafter in other processes picklable.
        stop: strings that end the text with the token that completes one of them.
        stop_in_thoughts: stop strings count in the reasoning of thinking models too.
        stop_after: the text begins with a thought that this string ends: stop strings count only after it.
        logprobs: log-probabilities of each new token, and of the N most probable ones at its place; None: none.
    """

    max_new_tokens: int = 128
    gamma: int | Literal["auto"] = 4
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    eos_ids: tuple[int, ...] | None = None
    reuse_prefix: bool = False
    overlap: bool = False
    min_p: float = 0.0
    min_new_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    suppress_tokens: tuple[int, ...] = ()
    processors: Sequence[Callable[[Any, Any], Any]] = field(default=(), hash=False)
    stop: tuple[str, ...] = ()
    stop_in_thoughts: bool = True
    stop_after: str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, minimum=0)
        if self.gamma != AUTO:
            check_integer("gamma", self.gamma, minimum=1, alternative=AUTO)
        check_number("temperature", self.temperature, minimum=0)
        if 0 < self.temperature < 1e-6:  # divided by less, logits overflow
            raise ValueError(f"temperature = {self.temperature!r}: must be 0 (greedy) or >= 1e-06")
        check_integer("top_k", self.top_k, minimum=0)
        check_number("top_p", self.top_p, minimum=1e-6, maximum=1)
        if self.seed is not None:
            check_integer("seed", self.seed, minimum=0)
            check_number("seed", self.seed, maximum=2**62)
        if self.eos_ids is not None and not isinstance(self.eos_ids, Iterable):
            raise ValueError(f"eos_ids = {self.eos_ids!r}: must be a tuple of ids")
        for token in self.eos_ids or ():
            check_integer("eos_ids", token, minimum=0)
        check_bool("overlap", self.overlap)
        self._check_processing()

    def _check_processing(self) -> None:
        check_number("min_p", self.min_p, minimum=0, maximum=1)
        check_integer("min_new_tokens", self.min_new_tokens, minimum=0)
        check_number("repetition_penalty", self.repetition_penalty, minimum=1e-6)
        check_number("presence_penalty", self.presence_penalty)
        check_number("frequency_penalty", self.frequency_penalty)
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias = {self.logit_bias!r}: must be numbers for ids, as in 50:-2,17:1.5")
        for token, bias in self.logit_bias.items():
            check_integer("logit_bias", token, minimum=0)
            check_number("logit_bias", bias)
        for token in self.suppress_tokens:
            check_integer("suppress_tokens", token, minimum=0)
        for processor in self.processors:
            if not callable(processor):
                raise ValueError(f"processors: {processor!r} must be a function of ids and logits")
        if isinstance(self.stop, str):
            raise ValueError(f"stop = {self.stop!r}: must be a tuple of strings")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop = {text!r}: must be a string that is not empty")
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, minimum=0)

    @property
    def processes_logits(self) -> bool:
        """True if logits are changed before temperature, top-k and top-p."""
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        others = (self.min_new_tokens, self.logit_bias, self.suppress_tokens, self.processors)
        return any(penalties) or any(map(bool, others))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
