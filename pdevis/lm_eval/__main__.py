"""lm-evaluation-harness with pdevis as one of its models.

    python -m pdevis.lm_eval --model pdevis --model_args target=qwen-8b,drafter=qwen-0.6b,gamma=6 --tasks gsm8k
    python -m pdevis.lm_eval --model pdevis --model_args target=smollm2-135m --tasks ifeval --apply_chat_template
    python -m pdevis.lm_eval ls tasks

All flags are lm_eval's own. `--model_args` takes the arguments of `pdevis.lm_eval.adapter.Adapter`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pdevis.cli import run_main
from pdevis.lm_eval.adapter import register
from pdevis.util.files import home_for_libraries


def run(words: Sequence[str]) -> None:
    """Run lm_eval's command line with `--model pdevis` registered."""
    with home_for_libraries():
        import nltk  # noqa: F401  # tasks import it later
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["python -m pdevis.lm_eval", *words]  # lm_eval reads its flags from sys.argv
    cli_evaluate()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
