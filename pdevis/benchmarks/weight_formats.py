"""Compare weight formats of one model: agreement with float32 on real text, and milliseconds for k tokens.

"Agreement" is the fraction of positions at which the format has float32's argmax. On text that the float32 model
itself writes after the built-in prompts, that is the highest acceptance rate that a drafter in this format can have;
on human-written text it shows how much the format changes the model. Timings of the formats are interleaved.

    python evaluation/formats/evaluate_formats.py --formats packed,int8

Shapes: T = positions, V = vocabulary.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pdevis.benchmarks.speed.decoders import builtin_prompts, specbench_prompts
from pdevis.config import DecodeConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.checkpoint import Source, find_source, read_model, read_tokenizer
from pdevis.loading.weights.weight_reader import read_weights
from pdevis.models.layers import StackWeights
from pdevis.models.stack import DecoderStack
from pdevis.text import apply_chat_template
from pdevis.util.console import make_console, make_table
from pdevis.util.prompts import PROMPTS

PLAIN_INT8 = "int8 without rotation"
FORMATS = ("float32", "packed", "bfloat16", PLAIN_INT8, "int8")
MAX_WIDTH = 32  # tokens in one timed forward
CONTEXT_TOKENS = 64  # in the cache while timing


@dataclass(frozen=True)
class FormatSettings:
    """The formats to compare, and the texts and timings to compare them on.

    Args:
        formats: some of `FORMATS`.
        widths: numbers of tokens k to time.
        prompts: texts, at most.
        length: tokens of each text.
        repeats: timings per format and k.
        texts: human-written texts; None: what float32 writes after the built-in prompts.
    """

    formats: tuple[str, ...]
    widths: tuple[int, ...]
    prompts: int
    length: int
    repeats: int
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"--formats: {name!r} must be one of {', '.join(FORMATS)}")
        for name in ("prompts", "length", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: {getattr(self, name)} must be an integer >= 1")


@dataclass
class FormatResult:
    """One format: agreement and mean KL divergence (nats) from float32, seconds of each forward by token count."""

    name: str
    agreement: float
    divergence: float
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def milliseconds(self, tokens: int) -> float:
        """Median time of a forward over this many tokens."""
        return 1000 * median(self.seconds[tokens])


@dataclass(frozen=True)
class SampleText:
    """Token ids of a prompt and of the text after it, on which formats are compared."""

    prompt: list[int]
    answer: list[int]


def read_settings(args: Namespace) -> FormatSettings:
    """Return the settings that the flags of evaluate_formats.py ask for. Raises ValueError for a wrong one."""
    widths = args.widths.split(",")
    if not all(word.isdigit() and 0 < int(word) <= MAX_WIDTH for word in widths):
        raise ValueError(f"--widths: {args.widths!r} must be integers from 1 to {MAX_WIDTH}, separated by commas")
    settings = FormatSettings(
        formats=tuple(args.formats.split(",")),
        widths=tuple(map(int, widths)),
        prompts=args.prompts,
        length=args.length,
        repeats=args.repeats,
    )
    if args.specbench is None:
        builtin_prompts(args.prompts)  # checks their number
        return settings
    questions = specbench_prompts(args.specbench, categories=None, count=args.prompts)
    return replace(settings, texts=tuple(question.text for question in questions))


def run_formats(args: Namespace) -> None:
    """Compare formats and print a table. Raises ValueError for a wrong flag."""

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settings = read_settings(args)
    results = compare_formats(find_source(args.model, log), settings, on_progress=log)
    rows = [
        (
            result.name,
            f"{result.agreement:.3f}",
            f"{result.divergence:.4f}",
            *(f"{result.milliseconds(k):.1f}" for k in settings.widths),
        )
        for result in results
    ]
    make_console().print(make_table(("format", "agreement", "KL", *(f"k={k} ms" for k in settings.widths)), rows))


def compare_formats(
    source: Source, settings: FormatSettings, on_progress: Callable[[str], None] = lambda line: None
) -> list[FormatResult]:
    """Measure each format of a model that a `DecoderStack` can run, on CPU."""
    cpu = torch.device("cpu")
    model, tokenizer = read_model(source, torch.float32, cpu), read_tokenizer(source)
    reference = DecoderStack(read_weights(model, "float32", cpu))
    if settings.texts is None:
        on_progress("writing the text in float32")
        samples = [_write(reference, tokenizer, prompt, settings.length) for prompt in PROMPTS[: settings.prompts]]
    else:
        ids = [list(tokenizer(text)["input_ids"])[: settings.length + 1] for text in settings.texts]
        samples = [SampleText(tokens[:1], tokens[1:]) for tokens in ids]
    stacks, results = {}, []
    for name in settings.formats:
        on_progress(f"reading {name}")
        stacks[name] = DecoderStack(_read_format(model, name, cpu))
        results.append(_compare(name, stacks[name], reference, samples))
    on_progress("timing")
    _time_formats(stacks, results, samples, settings)
    return results


def _read_format(model: Any, name: str, device: torch.device) -> StackWeights:
    if name == PLAIN_INT8:
        return read_weights(model, "int8", device, rotate=False)
    return read_weights(model, name, device)


def _write(stack: DecoderStack, tokenizer: Any, prompt: str, length: int) -> SampleText:
    """Return a chat prompt and the greedy text after it."""
    message = [{"role": "user", "content": prompt}]
    ids = list(apply_chat_template(tokenizer, message, add_generation_prompt=True, return_dict=False))
    config = DecodeConfig(max_new_tokens=length, eos_ids=())
    return SampleText(
        ids, [event.id for event in autoregressive(Verifier(stack), ids, config=config, stats=DecodeStats())]
    )


def _compare(name: str, stack: DecoderStack, reference: DecoderStack, samples: Sequence[SampleText]) -> FormatResult:
    """Compare next-token distributions with those of the reference at every position of the samples."""
    same, divergence, count = 0, 0.0, 0
    for sample in samples:
        p, q = (_logits(model, sample).log_softmax(-1) for model in (reference, stack))  # [T, V]
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        divergence += float((p.exp() * (p - q)).sum())
        count += len(sample.answer)
    return FormatResult(name, same / count, divergence / count)


@torch.inference_mode()
def _logits(stack: DecoderStack, sample: SampleText) -> Tensor:
    """Return the logits [T, V] from which the T tokens of the answer are chosen, in float64."""
    stack.rewind(0)
    if sample.prompt[:-1]:
        stack.prefill(torch.tensor(sample.prompt[:-1]))
    return stack.forward(torch.tensor([sample.prompt[-1], *sample.answer[:-1]])).double()


def _time_formats(
    stacks: dict[str, DecoderStack],
    results: Sequence[FormatResult],
    samples: Sequence[SampleText],
    settings: FormatSettings,
) -> None:
    """Add the seconds of each forward to the results, formats interleaved."""
    tokens = [token for sample in samples for token in sample.prompt + sample.answer]
    ids = torch.tensor(tokens * (1 + (CONTEXT_TOKENS + max(settings.widths)) // len(tokens)))
    for _ in range(settings.repeats):
        for result in results:
            for k in settings.widths:
                result.seconds.setdefault(k, []).append(_time_forward(stacks[result.name], ids, k))


@torch.inference_mode()
def _time_forward(stack: DecoderStack, ids: Tensor, tokens: int) -> float:
    stack.rewind(0)
    stack.prefill(ids[:CONTEXT_TOKENS])
    begin = time.perf_counter()
    stack.forward(ids[CONTEXT_TOKENS : CONTEXT_TOKENS + tokens])
    return time.perf_counter() - begin
