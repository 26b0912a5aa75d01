r"""Check an installation: does speculative decoding write what the target writes alone, token for token?

    python -m pdevis.verify                                             # the embedded model, drafting for itself
    python -m pdevis.verify --target_model qwen-8b --drafter_model qwen-0.6b --prompts 12 --length 128
    python -m pdevis.verify --target_precision float32 --transformers   # and transformers' generate?
    python -m pdevis.verify --target_model random:llama-1b --length 16  # published dimensions, no download

Greedy, on built-in prompts, under the drafting settings of the flags. Where two texts part, the line says at which
token, and how far the target's logits of the two tokens are apart. A forward of several tokens may round differently
from several forwards of one token; where the two best logits are closer than that rounding, either token is right: a
near-tie. Any other difference is a fault, of the machine, of a library, or of pdevis.

Exit code: 0 if all texts are equal, 3 if some part at near-ties only, 1 if there is a real difference, 2 for a mistake
in the flags, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pdevis.cli import Parser, add_draft_flags, add_model_flags, run_main
from pdevis.config import DecodeConfig
from pdevis.util.argtypes import gamma_value, positive_int, settings_field
from pdevis.util.prompts import PROMPTS

DEFAULT_PROMPTS, DEFAULT_LENGTH = 8, 64


def build_parser() -> Parser:
    parser = Parser(prog="python -m pdevis.verify", description=__doc__)
    group = parser.add_argument_group("check")
    text = f"built-in prompts to decode, at most {len(PROMPTS)} (default: %(default)s)"
    group.add_argument("--prompts", type=positive_int, default=DEFAULT_PROMPTS, metavar="N", help=text)
    text = "new tokens after each (default: %(default)s)"
    group.add_argument("--length", type=positive_int, default=DEFAULT_LENGTH, metavar="N", help=text)
    gamma = settings_field(DecodeConfig, "gamma", gamma_value)
    text = "draft tokens per round, or auto (default: %(default)s)"
    group.add_argument("--gamma", type=gamma, default=DecodeConfig.gamma, metavar="N", help=text)
    text = "compare with transformers' generate too, which loads the target a second time"
    group.add_argument("--transformers", action="store_true", help=text)
    add_model_flags(parser)
    add_draft_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from pdevis.verify.verify_run import run_verify  # imports torch, which --help does not need

    return run_verify(args)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
