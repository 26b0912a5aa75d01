"""The flags that several scripts of this project share, and their conversion to settings.

Each value is checked while it is parsed, by the frozen dataclass that it ends up in (`DraftConfig`, `DecodeConfig`),
so that a mistake is one line on stderr that names flag, value and what is allowed (exit code 2). Every flag works
with underscores and with dashes; a mistyped flag is an error, and flags are never abbreviated.

    parser = Parser(description="…")
    add_model_flags(parser)
    add_draft_flags(parser)
    add_decode_flags(parser)  # of controls/decode_flags.py
    args = parser.parse_args()
    pair = load_pair(**pair_arguments(args))
    pair.generate("…", decode_config(args))

`--profile FILE` makes the settings of a tuning profile the defaults of all flags that the user does not give.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from pdevis.config import CHECKS, MODES, RANKS, DraftConfig
from pdevis.profile import DEVICE_FLAGS, Profile, read_profile
from pdevis.util.argtypes import choice, nearest, one_line, positive_int, settings_field
from pdevis.util.files import prepare_streams
from pdevis.util.validation import DraftingWarning

DEFAULT_TARGET = "smollm2-135m"
DEFAULT_DRAFTER = "self"
TARGET_DEVICE_HELP = "of the target; several: cuda:0,cuda:1, auto, or ranks (under torchrun) (default: --device)"
DRAFT_DEVICE_HELP = "of the drafter; several, for its lanes: cuda:0,cuda:1, cpu:0,cpu:1, or ranks (default: --device)"


class Parser(argparse.ArgumentParser):
    """An argument parser that reads `--a_b` and `--a-b` as one flag, and reports a mistake on one line (exit code 2).

    If the command line has `--profile FILE`, it is parsed twice: once to see which flags are given, then with the
    settings of the profile as defaults. So a given flag takes precedence, whatever its value.
    """

    def __init__(self, **settings: Any) -> None:
        note = "Flags may be written with underscores or with dashes: --draft_mode, --draft-mode."
        epilog = "\n\n".join(filter(None, [settings.pop("epilog", None), note]))
        formatter = settings.pop("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, epilog=epilog, formatter_class=formatter, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse like argparse, after writing each flag as it was declared, with the defaults of --profile."""
        prepare_streams()
        words = list(sys.argv[1:] if args is None else args)
        declared = self._declared_flags()
        end = words.index("--") if "--" in words else len(words)
        for i, word in enumerate(words[:end]):
            flag, equals, value = word.partition("=")
            if flag.startswith("--"):
                words[i] = declared.get(flag.replace("-", "_"), flag) + equals + value
        given, unknown = super().parse_known_args(words, namespace)
        if getattr(given, "profile", None) is None:
            return given, unknown
        try:
            profile = read_profile(given.profile)
        except ValueError as error:
            self.error(f"--profile {error}")
        parsed, unknown = super().parse_known_args(words, self._profile_defaults(given, profile))
        _report_differences(parsed, profile)
        return parsed, unknown

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse like argparse; an unknown word is an error that suggests the nearest flag."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            flag = unknown[0].partition("=")[0]
            declared = self._declared_flags()
            match = nearest(flag.replace("-", "_"), declared)
            self.error(f"unknown flag {flag}" + (f"; did you mean {declared[match]}?" if match else " (see --help)"))
        if unknown:
            self.error(f"unexpected {unknown[0]!r}: every value follows its flag (see --help)")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line on stderr, without argparse's usage text."""
        self.exit(2, f"error: {one_line(message.removeprefix('argument '))}\n")

    def print_help(self, file: Any = None) -> None:
        """Print like argparse; if the file or pipe cannot be written, exit with code 1 and one line at most."""
        try:
            print(self.format_help(), end="", file=file or sys.stdout, flush=True)
        except OSError as error:
            _drop_broken(sys.stdout)
            self.exit(1, None if isinstance(error, BrokenPipeError) else f"error: {_describe_stdout(error)}\n")

    def _declared_flags(self) -> dict[str, str]:
        """Return the declared spelling of each flag, by its spelling with underscores."""
        return {flag.replace("-", "_"): flag for flag in self._option_string_actions}

    def _profile_defaults(self, given: argparse.Namespace, profile: Profile) -> argparse.Namespace:
        """Return the settings of a profile for the flags that this script has and shows."""
        values = profile.flags()
        if any(getattr(given, name, None) is not None for name in DEVICE_FLAGS):
            # --device sets two devices: the profile's --target_device must not override it
            values = {name: value for name, value in values.items() if name not in DEVICE_FLAGS}
        shown = {action.dest for action in self._actions if action.help != argparse.SUPPRESS}
        return argparse.Namespace(**{name: value for name, value in values.items() if name in shown})


def _report_differences(args: argparse.Namespace, profile: Profile) -> None:
    """Say on stderr if the profile was made for other models, formats, devices or another machine."""
    used: dict[str, str | None] = {"target": args.target_model, "drafter": args.drafter_model}
    for model in ("target", "draft"):
        used[f"{model}_device"] = getattr(args, f"{model}_device") or args.device
        used[f"{model}_precision"] = getattr(args, f"{model}_precision")
    differences = profile.differences(used)
    if differences:
        note = f"note: --profile {args.profile} was made for {'; '.join(differences)}"
        print(f"{note}: it is used, but may not fit (python -m pdevis.tune makes a new one)", file=sys.stderr)


def add_model_flags(
    parser: Parser,
    target_device: str = "--target_device",
    draft_device: str = "--draft_device",
    profile: bool = True,
) -> None:
    """Add the flags of models, devices and weight formats.

    Args:
        target_device, draft_device: this script's names of the two device flags.
        profile: with --profile.
    """
    group = parser.add_argument_group("models", "A model is a catalog key, a hub id, or a local folder.")
    group.add_argument("--target_model", metavar="MODEL", default=DEFAULT_TARGET, help="default: %(default)s")
    text = "default: %(default)s, the target's own weights"
    group.add_argument("--drafter_model", metavar="MODEL", default=DEFAULT_DRAFTER, help=text)
    text = "of both models: cpu, cpu:1 (a core), cuda:1 (default: cuda if there is one, else cpu)"
    group.add_argument("--device", metavar="DEV", help=text)
    for flag, name, text in (
        (target_device, "target_device", TARGET_DEVICE_HELP),
        (draft_device, "draft_device", DRAFT_DEVICE_HELP),
    ):
        # under the script's own name, and under the name that all other scripts use
        group.add_argument(*dict.fromkeys((flag, f"--{name}")), dest=name, metavar="DEV", help=text)
    text = "weight format, such as float32, int8 (default: auto)"
    for model in ("target", "draft"):
        group.add_argument(f"--{model}_precision", metavar="FORMAT", default="auto", help=text)
    _add_acceleration_flags(group)
    text = "on, off, or auto (the model's own default): thoughts before answers, if the chat template has this switch"
    group.add_argument("--thinking", type=choice("auto", "on", "off"), metavar="WHEN", help=text)
    text = "plain text on which static schedules are chosen (default: a text of the package)"
    group.add_argument("--calibration_text", metavar="FILE", help=text)
    group.add_argument("--trace", metavar="FILE", help="record every round in a file for python -m pdevis.simulate")
    if profile:
        text = "settings found by python -m pdevis.tune; flags that are given take precedence"
        group.add_argument("--profile", metavar="FILE", help=text)


def _add_acceleration_flags(group: argparse._ArgumentGroup) -> None:
    text = "the drafter proposes ids below N only, which makes its output head smaller (default: all)"
    group.add_argument("--draft_vocab", type=positive_int, metavar="N", help=text)
    text = (
        "auto, on, off: whole forwards compiled, and on CUDA captured as graphs, for drafts of up to 15 tokens; "
        "auto: on CUDA (default: auto)"
    )
    group.add_argument("--graphs", type=choice("auto", "on", "off"), metavar="WHEN", help=text)
    group.add_argument("--compile", dest="graphs", action="store_const", const="on", help="the same as --graphs on")
    text = "run the drafter in a separate process that continues drafting while the target verifies"
    group.add_argument("--overlap", action="store_true", help=text)


def add_draft_flags(parser: Parser, without: Container[str] = ()) -> None:
    """Add one flag per field of `DraftConfig`, except for the fields `without`."""
    base = DraftConfig()
    group = parser.add_argument_group("drafting", "How the drafter's layers run.")

    def add(name: str, convert: Callable[[str], Any], metavar: str, text: str, *, flag: str | None = None) -> None:
        if name in without:
            return
        argtype = settings_field(DraftConfig, name, convert)
        flag = flag or name
        group.add_argument(f"--{flag}", type=argtype, default=getattr(base, name), metavar=metavar, help=text)

    def add_switch(name: str, text: str) -> None:
        if name not in without:
            action = argparse.BooleanOptionalAction
            group.add_argument(f"--{name}", action=action, default=getattr(base, name), help=text)

    add("mode", str, "MODE", f"{', '.join(MODES)} (default: {base.mode})", flag="draft_mode")
    add("threshold", float, "X", f"cosine above which a layer is redundant (default: {base.threshold})")
    add("window", int, "N", f"layers that start from one hidden state (default: {base.window})")
    add("attention_window", int, "N", "lanes of attention in a group (default: the window)")
    add("mlp_window", int, "N", "lanes of MLP in a group (default: the window, at most 2)")
    add("check", str, "WHEN", f"{', '.join(CHECKS)} (default: {base.check})")
    add("keep_first", int, "N", f"first layers that always run alone (default: {base.keep_first})")
    add("keep_last", int, "N", f"last layers that always run alone (default: {base.keep_last})")
    text = "a static schedule, such as 0-1,2+3,4a,5m, or auto; several, for the planned check: 0-1,2+3;0-3"
    add("schedule", str, "GROUPS", text)
    text = f"acceptance that a static schedule is predicted to keep (default: {base.retention})"
    add("retention", float, "X", text)
    add("corrections", str, "FILE", "a static schedule with its corrections: a file of python -m pdevis.calibrate")
    add_switch("stagger", "static: each MLP of a group reads the attentions up to its own layer (default: no)")
    add_switch("calibrate", "recompute the confirmed tokens exactly once per round (default: yes)")


def draft_config(args: argparse.Namespace) -> DraftConfig:
    """Return the drafting settings of the flags. Raises ValueError if two of them exclude each other."""
    names = [field.name for field in fields(DraftConfig) if field.name != "mode"]
    return DraftConfig(mode=args.draft_mode, **{name: getattr(args, name) for name in names})


def pair_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_pair` that the flags ask for."""
    names = ("device", "target_device", "draft_device", "target_precision", "draft_precision")
    # these only if they are given: the load_pair of a --code_path file may not have them
    optional = ("draft_vocab", "graphs", "thinking", "sampling", "overlap", "trace", "profile", "calibration_text")
    return {
        "target": args.target_model,
        "drafter": args.drafter_model,
        **{name: getattr(args, name) for name in names},
        "draft": draft_config(args),
        **{name: value for name in optional if (value := getattr(args, name, None))},
    }


def is_main_rank(args: argparse.Namespace) -> bool:
    """Return True if this process runs the script.

    With --target_device ranks only rank 0 of torchrun does. The other ranks load their part of the pair and compute
    for it until rank 0 has finished.
    """
    return not on_ranks(args) or os.environ.get("RANK", "0") == "0"


def on_ranks(args: argparse.Namespace) -> bool:
    """Return True if the flags ask for a target on all ranks of torchrun."""
    return (args.target_device or args.device) == RANKS


def run_main(function: Callable[..., int | None], *args: Any) -> int:
    """Run a script's work and return its exit code: 0, or what `function` returns.

    A user's mistake (ValueError) is one line on stderr and 2, a failing disk or network (OSError) one line and 1,
    Ctrl-C is 130, and a reader that has closed the pipe (as in `| head`) is 1 without a message. If stderr cannot be
    written, the work goes on without it.
    """
    prepare_streams()
    stderr = sys.stderr
    sys.stderr = _OptionalStream(stderr)
    try:
        with _warnings_on_one_line():
            code = function(*args) or 0
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, MemoryError)) and not _is_out_of_memory(error):
            raise
        print(f"error: {_describe(error)}", file=sys.stderr)
        code = 2 if isinstance(error, ValueError) else 1
    finally:
        failure = _drop_broken(sys.stdout)
        sys.stderr = stderr
    if failure and not code:
        code = 1
        if not isinstance(failure, BrokenPipeError):
            _OptionalStream(stderr).write(f"error: {_describe_stdout(failure)}\n")
    _drop_broken(stderr)
    return code


def _describe(error: Exception) -> str:
    """Describe an error on one line; name stdout if what failed is writing to it."""
    if isinstance(error, OSError) and error.filename is None:
        failure = _drop_broken(sys.stdout)
        if failure and failure.errno == error.errno:
            return _describe_stdout(failure)
    return one_line(error) or "out of memory"


def _describe_stdout(error: OSError) -> str:
    return f"standard output cannot be written: {error.strerror or error}"


class _OptionalStream:
    """A text stream whose text is dropped if it cannot be written, as on a full disk."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _drop_broken(stream: Any) -> OSError | None:
    """Flush a standard stream; if that fails, send the rest to the null device: the interpreter flushes it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


@contextlib.contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Print warnings of drafting on one line, without the place in the code; others as before."""
    show = warnings.showwarning

    def show_on_one_line(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, DraftingWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **options)

    warnings.showwarning = show_on_one_line
    try:
        yield
    finally:
        warnings.showwarning = show


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not imported here: --help works without torch
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
