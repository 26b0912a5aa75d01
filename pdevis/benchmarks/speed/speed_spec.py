"""The flags of a speed comparison, and the frozen settings that they become. Mistakes are reported here.

parser = speed_parser(__doc__)
spec = read_spec(parser.parse_args())
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pdevis.benchmarks.speed.baselines import (
    DRAFT_STEP,
    NAMES,
    SELF,
    TRANSFORMERS,
    baseline_name,
    unavailable,
)
from pdevis.benchmarks.speed.decoders import SpeedPrompt, builtin_prompts, specbench_prompts
from pdevis.benchmarks.speed.speed_report import MEMORY, PROMPT
from pdevis.cli import Parser, add_draft_flags, add_model_flags, draft_config, is_main_rank, on_ranks, pair_arguments
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.util.argtypes import bounded_float, gamma_value, parse_value
from pdevis.util.provenance import sha256

SPECULATIVE = "speculative"
TRANSFORMERS_PARTS = (*TRANSFORMERS, DRAFT_STEP)
PARTS = (SPECULATIVE, *TRANSFORMERS_PARTS, "llama.cpp")  # that --without can leave out
ALL_TRANSFORMERS = "transformers"  # in --without: all of TRANSFORMERS_PARTS
DEFAULT_GAMMA = 4  # of assisted generation if --gammas has no number


@dataclass(frozen=True)
class SpeedSpec:
    """All settings of one speed comparison.

    Args:
        pair_arguments: arguments of `load_pair`, without the drafting settings.
        drafts, gammas: the speculative decoders are all their combinations.
        prompts: the texts to continue.
        length: new tokens after each prompt.
        without: the `PARTS` that are not wanted.
        device_lists: devices of the drafter to compare, as in "cpu:0,cpu:1"; (): one drafter as --draft_device says.
        memory: measure the peak memory too, if the drafter runs in the same process.
        on_ranks: the target runs on all ranks of torchrun.
        is_main: this process runs the comparison; the other ranks of torchrun only load their part of the pair.
        synthetic_acceptance: probability with which draft tokens are accepted, drawn; None: real acceptance.
        gguf: the target's weights for llama.cpp.
        specbench: the file of the prompts; None: they are built in.
        output: the result file; None: nothing is written.
        resume, overwrite: what happens to existing results.
        progress: show a progress bar.
    """

    pair_arguments: dict[str, Any]
    drafts: tuple[DraftConfig, ...]
    gammas: tuple[int | str, ...]
    prompts: tuple[SpeedPrompt, ...]
    length: int
    without: tuple[str, ...] = ()
    device_lists: tuple[str, ...] = ()
    memory: bool = True
    on_ranks: bool = False
    is_main: bool = True
    synthetic_acceptance: float | None = None
    gguf: Path | None = None
    specbench: Path | None = None
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    progress: bool = True

    @property
    def overlap(self) -> bool:
        """True if every speculative decoder is measured with drafting ahead, too."""
        return self.pair_arguments.get("overlap", False)

    @property
    def draft_device(self) -> str | None:
        """The device of the drafter as the flags name it."""
        return self.pair_arguments["draft_device"] or self.pair_arguments["device"]

    @property
    def fixed_gamma(self) -> int:
        """Draft tokens per round of assisted generation with a fixed number."""
        return next((gamma for gamma in self.gammas if isinstance(gamma, int)), DEFAULT_GAMMA)

    @property
    def measures_memory(self) -> bool:
        """True if the peak memory is wanted and this process alone has it."""
        has_workers = bool(self.device_lists or self.overlap or self.on_ranks or "cpu:" in str(self.draft_device))
        return self.memory and not has_workers

    @property
    def wanted(self) -> list[str]:
        """Keys of the parts that can be measured and are wanted."""
        reasons = self._reasons()
        return [key for key in (*NAMES, DRAFT_STEP, SPECULATIVE) if key not in reasons]

    @property
    def left_out(self) -> dict[str, str]:
        """The reason for each part that is not measured, by its name in tables."""
        reasons = {
            baseline_name(key, self.fixed_gamma, self.gguf) if key in NAMES else key: reason
            for key, reason in self._reasons().items()
        }
        if self.memory and not self.measures_memory:
            reasons["peak memory"] = "the drafter has processes of its own"
        return reasons

    @property
    def units(self) -> list[str]:
        """The kind of each unit of work: the prompts, then the draft step and the memory, if they are measured."""
        draft_step = [DRAFT_STEP] if DRAFT_STEP in self.wanted else []
        return [PROMPT] * len(self.prompts) + draft_step + ([MEMORY] if self.measures_memory else [])

    def settings(self) -> dict[str, Any]:
        """Return all that has an influence on the results, for the header. A run is resumed only if it is the same."""
        import torch

        pair = self.pair_arguments
        return {
            "target_model": pair["target"],
            "drafter_model": pair["drafter"],
            "target_precision": pair["target_precision"],
            "draft_precision": pair["draft_precision"],
            "length": self.length,
            "memory": self.memory,
            "drafts": [asdict(draft) for draft in self.drafts],
            "gammas": list(self.gammas),
            "target_device": pair["target_device"] or pair["device"],
            "draft_devices": list(self.device_lists) or [self.draft_device],
            "overlap": self.overlap,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "specbench_sha256": sha256(self.specbench) if self.specbench else None,
            "gguf": self.gguf and {"name": self.gguf.name, "bytes": self.gguf.stat().st_size},
            "left_out": self.left_out,
            "threads": torch.get_num_threads(),
            **({} if self.synthetic_acceptance is None else {"synthetic_acceptance": self.synthetic_acceptance}),
        }

    def _reasons(self) -> dict[str, str]:
        """The reason for each decoder that is not measured, by key."""
        reasons = dict.fromkeys(self.without, "--without")
        for key, reason in unavailable(self.pair_arguments["drafter"] != SELF, self.gguf).items():
            reasons.setdefault(key, reason)
        return reasons


def speed_parser(description: str | None) -> Parser:
    """Return the parser of evaluate_speed.py; the description is its docstring."""
    parser = Parser(description=description)
    group = parser.add_argument_group("decoders")
    group.add_argument("--gammas", metavar="LIST", default="4", help="draft tokens per round, or auto (default: 4)")
    group.add_argument("--modes", metavar="LIST", help="drafting modes (default: --draft_mode)")
    group.add_argument("--thresholds", metavar="LIST", help="of skip and parallel (default: --threshold)")
    group.add_argument("--checks", metavar="LIST", help="inline, planned (default: --check)")
    group.add_argument(
        "--also", metavar="FLAGS", action="append", default=[], help="a further drafting rule, as its own flags"
    )
    parts = f"{', '.join(PARTS)}, or {ALL_TRANSFORMERS} for all of these"
    group.add_argument("--without", metavar="LIST", help=f"leave out: {parts}")
    group.add_argument(
        "--draft_devices", metavar="LISTS", help="devices of the drafter to compare: 'cpu:0;cpu:0,cpu:1'"
    )
    group.add_argument("--no_memory", dest="memory", action="store_false", help="leave out the peak memory")
    group.add_argument(
        "--synthetic_acceptance",
        type=bounded_float(maximum=1.0),
        metavar="P",
        help="draw acceptance: each draft token after accepted ones is accepted with probability P; for speed alone",
    )
    group.add_argument("--gguf", type=Path, metavar="FILE", help="the target's weights for llama.cpp")
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompts", type=int, default=12, metavar="N", help="number, at most (default: 12)")
    group.add_argument("--length", type=int, default=64, metavar="N", help="new tokens after each (default: 64)")
    group.add_argument("--specbench", type=Path, metavar="FILE", help="SpecBench questions instead of built-in prompts")
    group.add_argument("--categories", metavar="LIST", help="of the SpecBench file (default: all, interleaved)")
    group = parser.add_argument_group("results")
    group.add_argument("--output", type=Path, metavar="FILE", help="keep all measurements as JSON (default: none)")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue a run that was stopped, if there is one")
    existing.add_argument("--overwrite", action="store_true", help="start over and replace existing results")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    add_model_flags(parser)
    add_draft_flags(parser)
    return parser


def read_spec(args: Namespace) -> SpeedSpec:
    """Return the settings that the flags of `speed_parser` ask for. Raises ValueError for a wrong flag or file."""
    for flag in ("prompts", "length"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag}: {getattr(args, flag)} must be an integer >= 1")
    if args.categories and not args.specbench:
        raise ValueError(f"--categories {args.categories}: needs --specbench FILE")
    if args.draft_devices and args.draft_device:
        raise ValueError("--draft_devices: replaces --draft_device; give one of them")
    if args.resume and not args.output:
        raise ValueError("--resume: needs --output FILE, the run to continue")
    if args.gguf and not args.gguf.is_file():
        raise ValueError(f"--gguf {args.gguf}: {'is a folder' if args.gguf.is_dir() else 'does not exist'}")
    device_lists = parse_device_lists(args.draft_devices)
    arguments = pair_arguments(args)
    base = arguments.pop("draft")
    return SpeedSpec(
        pair_arguments=arguments,
        drafts=read_drafts(args, base),
        gammas=tuple(_parse_list("--gammas", args.gammas, DecodeConfig, "gamma", gamma_value)),
        without=parse_without(args.without),
        prompts=_read_prompts(args),
        length=args.length,
        device_lists=device_lists,
        memory=args.memory,
        on_ranks=on_ranks(args),
        is_main=is_main_rank(args),
        synthetic_acceptance=args.synthetic_acceptance,
        gguf=args.gguf,
        specbench=args.specbench,
        output=args.output,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=args.progress,
    )


def read_drafts(args: Namespace, base: DraftConfig) -> tuple[DraftConfig, ...]:
    """Return all combinations of the listed modes, checks and thresholds, then the rules of --also."""
    modes = _parse_list("--modes", args.modes, DraftConfig, "mode", str) or [base.mode]
    checks = _parse_list("--checks", args.checks, DraftConfig, "check", str) or [base.check]
    thresholds = _parse_list("--thresholds", args.thresholds, DraftConfig, "threshold", float) or [base.threshold]
    drafts = []
    for mode, check, threshold in product(modes, checks, thresholds):
        has_check = mode not in ("exact", "auto")
        draft = replace(base, mode=mode, check=check, threshold=threshold) if has_check else replace(base, mode=mode)
        drafts.append(draft)
    drafts += map(parse_rule, args.also)
    return tuple(dict.fromkeys(drafts))


def _parse_list(flag: str, text: str | None, config: type, name: str, convert: Callable[[str], Any]) -> list[Any]:
    """Return the different values of a comma list for the field `name` of a settings dataclass; [] for None."""
    if text is None:
        return []
    try:
        return list(dict.fromkeys(parse_value(config, name, convert, word.strip()) for word in text.split(",")))
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def parse_rule(text: str) -> DraftConfig:
    """Return the drafting settings of one --also. Flags that it does not have take their defaults."""
    parser = Parser(prog=f"--also {text!r}", usage="drafting flags only", add_help=False)
    add_draft_flags(parser)
    return draft_config(parser.parse_args(shlex.split(text)))


def parse_without(text: str | None) -> tuple[str, ...]:
    """Return the parts that --without leaves out. Raises ValueError for a word that is not one of them."""
    parts: list[str] = []
    for word in text.split(",") if text else []:
        name = word.strip()
        if name not in (*PARTS, ALL_TRANSFORMERS):
            raise ValueError(f"--without: {name!r} must be among {', '.join((*PARTS, ALL_TRANSFORMERS))}")
        parts += TRANSFORMERS_PARTS if name == ALL_TRANSFORMERS else [name]
    return tuple(dict.fromkeys(parts))


def parse_device_lists(text: str | None) -> tuple[str, ...]:
    """Return the lists of --draft_devices, separated by semicolons. Raises ValueError for an empty or repeated one."""
    if text is None:
        return ()
    lists = tuple(part.strip() for part in text.split(";"))
    if "" in lists or len(set(lists)) < len(lists):
        raise ValueError(f"--draft_devices: {text!r} must be different lists, such as 'cpu:0;cpu:0,cpu:1'")
    return lists


def _read_prompts(args: Namespace) -> tuple[SpeedPrompt, ...]:
    if args.specbench is None:
        return tuple(builtin_prompts(args.prompts))
    categories = [name.strip() for name in args.categories.split(",")] if args.categories else None
    return tuple(specbench_prompts(args.specbench, categories=categories, count=args.prompts))
