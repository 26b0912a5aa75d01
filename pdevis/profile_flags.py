"""`--profile FILE`: a profile's settings become the defaults of the flags that the user does not give.

A command line is parsed twice: once to see what is given, once on top of the profile. So an explicit flag wins,
whatever its value. Flags that a script does not have, or hides, are left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pdevis.profile import DEVICES, Profile, read_profile

PROFILE_HELP = "settings that python -m pdevis.tune has found; flags given beside it win over them"
Parsed = tuple[argparse.Namespace, list[str]]


def parse_with_profile(
    parser: argparse.ArgumentParser,
    parse: Callable[[Sequence[str], argparse.Namespace | None], Parsed],
    words: Sequence[str],
    namespace: argparse.Namespace | None,
) -> Parsed:
    """Parse `words`, on top of the profile that --profile names, if there is one.

    Says in one line on stderr where the profile was made for other models, formats, devices or another machine, and
    uses it all the same. A file that cannot be used is the parser's error.
    """
    given, unknown = parse(words, namespace)
    if getattr(given, "profile", None) is None:
        return given, unknown
    try:
        profile = read_profile(given.profile)
    except ValueError as error:
        parser.error(f"--profile {error}")
    args, unknown = parse(words, _defaults(parser, given, profile))
    differing = profile.differences(_used(args))
    if differing:
        made_for = f"note: --profile {args.profile} was made for {'; '.join(differing)}"
        print(f"{made_for}: used all the same, but it may not fit (python -m pdevis.tune)", file=sys.stderr)
    return args, unknown


def profile_argument(args: argparse.Namespace) -> dict[str, Any]:
    """The argument `profile` of `load_pair`, where there is one."""
    path = getattr(args, "profile", None)
    return {} if path is None else {"profile": path}


def _defaults(parser: argparse.ArgumentParser, given: argparse.Namespace, profile: Profile) -> argparse.Namespace:
    values = profile.flags()
    if any(getattr(given, name, None) is not None for name in DEVICES):
        # --device stands for two flags: it must not lose against the profile's --target_device
        values = {name: value for name, value in values.items() if name not in DEVICES}
    shown = {action.dest for action in parser._actions if action.help != argparse.SUPPRESS}
    return argparse.Namespace(**{name: value for name, value in values.items() if name in shown})


def _used(args: argparse.Namespace) -> dict[str, str | None]:
    used: dict[str, str | None] = {"target": args.target_model, "drafter": args.drafter_model}
    for side in ("target", "draft"):
        used[f"{side}_device"] = getattr(args, f"{side}_device") or args.device
        used[f"{side}_precision"] = getattr(args, f"{side}_precision")
    return used
