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
from pdevis.devices import check_device
from pdevis.lm_eval.adapter import register
from pdevis.util.files import home_for_libraries


def name_device(words: Sequence[str]) -> list[str]:
    """Return lm_eval's arguments with the device of the models as `--device`, which its result file records.

    Without it lm_eval records and passes its own default, a GPU, and refuses `device=` among the model's arguments.
    """
    words = list(words)
    if "--model_args" not in words or any(word.partition("=")[0] in ("--device", "--config") for word in words):
        return words
    start = words.index("--model_args") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    parts = [part for word in words[start:end] for part in word.split(",") if part]
    devices = [part.partition("=")[2] for part in parts if part.startswith("device=")]
    kept = ",".join(part for part in parts if not part.startswith("device="))
    return [*words[:start], kept, *words[end:], "--device", *(devices[-1:] or [str(check_device(None))])]


def run(words: Sequence[str]) -> None:
    """Run lm_eval's command line with `--model pdevis` registered."""
    with home_for_libraries():
        import nltk  # noqa: F401  # tasks import it later
    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["python -m pdevis.lm_eval", *name_device(words)]  # lm_eval reads its flags from sys.argv
    cli_evaluate()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
