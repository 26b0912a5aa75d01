"""Talk to a pair of models in the terminal, or answer one prompt and exit.

    python appInference.py                                          # the embedded model, drafting for itself
    python appInference.py --target_model qwen-8b --drafter_model qwen-0.6b --device_drafter cuda:1
    python appInference.py --prompt "Why is the sky blue?" --json   # one JSON object: text, ids, stats, config

At the prompt, /help lists the commands.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pdevis.cli import Parser, add_draft_flags, add_model_flags, run_main
from pdevis.controls.decode_flags import add_decode_flags

if TYPE_CHECKING:
    from pdevis import SpeculativePair


def load_pair(*args: Any, **settings: Any) -> SpeculativePair:
    """Load a pair as `pdevis.load_pair` does. Evaluation scripts use this function of the file in `--code_path`."""
    from pdevis.pair import load_pair  # not at the top: torch takes seconds to import, and --help does not need it

    return load_pair(*args, **settings)


def build_parser() -> Parser:
    from pdevis.chat.app import add_chat_flags  # not at the top: evaluation scripts need `load_pair` only

    parser = Parser(description=__doc__)
    add_chat_flags(parser)
    add_model_flags(parser, target_device="--device_target", draft_device="--device_drafter")
    add_draft_flags(parser)
    add_decode_flags(parser, length="--length", max_new_tokens=256)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pdevis.chat.app import run_chat

    return run_main(run_chat, build_parser().parse_args(argv))


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else Python searches all objects of torch and transformers for garbage at exit: half a second
    sys.exit(code)
