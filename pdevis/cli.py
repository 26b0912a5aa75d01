"""The flags that every script of this project shares, and the way from them to settings.

Its one idea: a value is checked, while it is parsed, by the frozen dataclass that it ends up in (`DraftConfig`,
`DecodeConfig`), so that a mistake is one line on stderr that names flag, value and what is allowed (exit code 2).
Every flag works with underscores and with dashes; a mistyped flag is an error, and flags are never abbreviated.

    parser = Parser(description="…")
    add_model_flags(parser)
    add_draft_flags(parser)
    add_decode_flags(parser)
    args = parser.parse_args()
    pair = load_pair(**pair_arguments(args))
    pair.generate("…", decode_config(args))
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from pdevis.config import CHECKS, MODES, RANKS, DecodeConfig, DraftConfig
from pdevis.profile_flags import PROFILE_HELP, parse_with_profile, profile_argument
from pdevis.util.argtypes import gamma_value, nearest, one_line, positive_int, settings_field

DEFAULT_TARGET = "smollm2-135m"
DEFAULT_DRAFTER = "self"
TARGET_HELP = "of the target; several: cuda:0,cuda:1, auto, or ranks (under torchrun) (default: --device)"
DRAFT_HELP = "of the drafter; several, for its lanes: cuda:0,cuda:1, cpu:0,cpu:1, or ranks (default: --device)"


class Parser(argparse.ArgumentParser):
    """An argument parser for which `--a_b` and `--a-b` are one flag, and a mistake is one line and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        note = "Flags may be written with underscores or with dashes: --draft_mode, --draft-mode."
        epilog = "\n\n".join(filter(None, [settings.pop("epilog", None), note]))
        formatter = settings.pop("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, epilog=epilog, formatter_class=formatter, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's, each flag brought to the spelling it was declared with, on top of --profile's settings."""
        words = list(sys.argv[1:] if args is None else args)
        declared = self._declared()
        end = words.index("--") if "--" in words else len(words)
        for i, word in enumerate(words[:end]):
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                words[i] = declared.get(flag.replace("-", "_"), flag) + equals + value
        return parse_with_profile(self, super().parse_known_args, words, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; a word that is left over is an error that suggests the nearest flag."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            flag = unknown[0].partition("=")[0]
            declared = self._declared()
            match = nearest(flag.replace("-", "_"), declared)
            self.error(f"unknown flag {flag}" + (f"; did you mean {declared[match]}?" if match else " (see --help)"))
        if unknown:
            self.error(f"unexpected {unknown[0]!r}: every value follows its flag (see --help)")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 and one line on stderr, without argparse's usage text."""
        self.exit(2, f"error: {one_line(message.removeprefix('argument '))}\n")

    def _declared(self) -> dict[str, str]:
        return {flag.replace("-", "_"): flag for flag in self._option_string_actions}


def add_model_flags(
    parser: Parser,
    target_device: str = "--target_device",
    draft_device: str = "--draft_device",
    profile: bool = True,
) -> None:
    """Which models, where and in which format. The two device flags are named as the script promises them."""
    group = parser.add_argument_group("models", "A model is a catalog key, a hub id, or a local folder.")
    group.add_argument("--target_model", metavar="MODEL", default=DEFAULT_TARGET, help="default: %(default)s")
    group.add_argument(
        "--drafter_model",
        metavar="MODEL",
        default=DEFAULT_DRAFTER,
        help="default: %(default)s, the target's own weights",
    )
    group.add_argument(
        "--device",
        metavar="DEV",
        help="of both models: cpu, cpu:1 (a core), cuda:1 (default: cuda if there, else cpu)",
    )
    # the spelling that the script promises, and the one that all others have
    for flag, name, text in ((target_device, "target_device", TARGET_HELP), (draft_device, "draft_device", DRAFT_HELP)):
        group.add_argument(*dict.fromkeys((flag, f"--{name}")), dest=name, metavar="DEV", help=text)
    for model in ("target", "draft"):
        group.add_argument(
            f"--{model}_precision",
            metavar="FORMAT",
            default="auto",
            help="weight format, such as float32, int8 (default: auto)",
        )
    group.add_argument(
        "--draft_vocab",
        type=positive_int,
        metavar="N",
        help="the drafter proposes ids below N only, which makes its output head smaller (default: all)",
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile for whole forwards; the first of each shape takes a while"
    )
    group.add_argument(
        "--overlap",
        action="store_true",
        help="the drafter runs in a process of its own and drafts on while the target verifies",
    )
    group.add_argument("--trace", metavar="FILE", help="write what each round did, for python -m pdevis.simulate")
    if profile:
        group.add_argument("--profile", metavar="FILE", help=PROFILE_HELP)


def add_draft_flags(parser: Parser) -> None:
    """How the drafter's layers run: one flag per field of `DraftConfig`."""
    base = DraftConfig()
    group = parser.add_argument_group("drafting", "How the drafter's layers run.")

    def add(flag: str, name: str, convert: Callable[[str], Any], metavar: str, text: str) -> None:
        kind = settings_field(DraftConfig, name, convert)
        group.add_argument(flag, dest=flag[2:], type=kind, default=getattr(base, name), metavar=metavar, help=text)

    add("--draft_mode", "mode", str, "MODE", f"{', '.join(MODES)} (default: {base.mode})")
    add("--threshold", "threshold", float, "X", f"cosine above which a layer is redundant (default: {base.threshold})")
    add("--window", "window", int, "N", f"layers that start from one hidden state (default: {base.window})")
    add("--attention_window", "attention_window", int, "N", "lanes of attention in a group (default: the window)")
    add("--mlp_window", "mlp_window", int, "N", "lanes of MLP in a group (default: the window, at most 2)")
    add("--check", "check", str, "WHEN", f"{', '.join(CHECKS)} (default: {base.check})")
    add("--keep_first", "keep_first", int, "N", f"first layers that always run alone (default: {base.keep_first})")
    add("--keep_last", "keep_last", int, "N", f"last layers that always run alone (default: {base.keep_last})")
    group.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=base.calibrate,
        help="recompute the confirmed tokens exactly once per round (default: yes)",
    )


def add_decode_flags(
    parser: Parser, length: str = "--length", max_new_tokens: int = DecodeConfig.max_new_tokens
) -> None:
    """How one generation decodes. The flag for its length is named as the script promises it."""
    group = parser.add_argument_group("decoding")

    def add(flag: str, name: str, convert: Callable[[str], Any], metavar: str, default: Any, text: str) -> None:
        group.add_argument(
            flag,
            dest=name,
            type=settings_field(DecodeConfig, name, convert),
            default=default,
            metavar=metavar,
            help=text,
        )

    base = DecodeConfig()
    add("--gamma", "gamma", gamma_value, "N", base.gamma, "draft tokens per round, or auto (default: %(default)s)")
    add(length, "max_new_tokens", int, "N", max_new_tokens, "limit on new tokens (default: %(default)s)")
    add("--temperature", "temperature", float, "X", base.temperature, "0 is greedy (default: %(default)s)")
    add("--top_k", "top_k", int, "N", base.top_k, "sample among the k most probable; 0: all (default: %(default)s)")
    add("--top_p", "top_p", float, "X", base.top_p, "sample among this mass; 1: all (default: %(default)s)")
    add("--seed", "seed", int, "N", base.seed, "of the random numbers (default: a fresh one)")


def draft_config(args: argparse.Namespace) -> DraftConfig:
    """The drafting settings of the flags. Raises ValueError where two of them exclude each other."""
    names = [field.name for field in fields(DraftConfig) if field.name != "mode"]
    return DraftConfig(mode=args.draft_mode, **{name: getattr(args, name) for name in names})


def decode_config(args: argparse.Namespace, **changes: Any) -> DecodeConfig:
    """The decoding settings of the flags; `changes` are further fields of `DecodeConfig`."""
    names = ("gamma", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
    changes = {"overlap": getattr(args, "overlap", False)} | changes
    return DecodeConfig(**{name: getattr(args, name) for name in names} | changes)


def pair_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load_pair` that the flags ask for."""
    names = ("device", "target_device", "draft_device", "target_precision", "draft_precision")
    # only where they are asked for: a load_pair of --code_path need not know them
    further = {name: value for name in ("draft_vocab", "compile", "overlap", "trace") if (value := getattr(args, name))}
    return {
        "target": args.target_model,
        "drafter": args.drafter_model,
        **{name: getattr(args, name) for name in names},
        "draft": draft_config(args),
        **further,
        **profile_argument(args),
    }


def is_main_rank(args: argparse.Namespace) -> bool:
    """Whether this process runs the program. With --target_device ranks the first rank of torchrun does; the others
    only load their part of the pair, which lets them help until the first is done."""
    return not on_ranks(args) or os.environ.get("RANK", "0") == "0"


def on_ranks(args: argparse.Namespace) -> bool:
    """Whether the target runs on all ranks of torchrun."""
    return (args.target_device or args.device) == RANKS


def run_main(function: Callable[..., int | None], *args: Any) -> int:
    """Run a script's work and return its exit code: 0, or what `function` returns.

    A user's mistake (ValueError) is one line on stderr and 2, a failing disk or network (OSError) one line and 1,
    Ctrl-C is 130, and a reader that went away (as in `| head`) is a quiet 1.
    """
    try:
        code = function(*args) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which would complain again.
        with contextlib.suppress(OSError, ValueError):
            stdout = sys.stdout.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
        return 1
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, MemoryError)) and not _out_of_memory(error):
            raise
        print(f"error: {one_line(error) or 'out of memory'}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not imported for this: --help does without
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
