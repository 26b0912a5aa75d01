"""MATH: competition mathematics; answers are compared with math-verify, so that 1/2, 0.5 and \\frac12 are one."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from pdevis.benchmarks.tasks.items import Item, load_items, present, shortened, text
from pdevis.benchmarks.tasks.task import Scores, Task

INSTRUCTION = "Reason step by step, and put the final answer into \\boxed{}."
UNSPECIFIED = "unspecified"
TIMEOUT_SECONDS = 5  # for parsing one answer, and for one comparison

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(answer: str) -> str | None:
    """Content of the last \\boxed{…}, braces inside it included; None if there is none or it is never closed."""
    for box in reversed(list(_BOX.finditer(answer))):
        depth = 1
        for i in range(box.end(), len(answer)):
            escaped = answer[i - 1] == "\\" and answer[i - 2 : i] != "\\\\"
            if not escaped:
                depth += {"{": 1, "}": -1}.get(answer[i], 0)
            if not depth:
                return answer[box.end() : i]
    return None


def matches_label(label: str, answer: str) -> tuple[bool, str | None]:
    """Compare the result of an answer with the label: (is it the same, the result that was extracted).

    math-verify reads several boxes as one set of results, which they may be; so the last box alone counts as well, as
    is usual with MATH. math-verify limits its time with signals, which work in the main thread only: in other threads
    it runs without a limit.
    """
    from math_verify import parse, verify

    seconds = TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None
    boxed = last_boxed(answer)
    gold = parse(label if _BOX.search(label) else f"\\boxed{{{label}}}", parsing_timeout=seconds)
    parsed = parse(answer, parsing_timeout=seconds)
    extracted = boxed if boxed is not None else (str(parsed[-1]) if parsed else None)
    expected = last_boxed(label) or label
    if boxed is not None and _without_spaces(boxed) == _without_spaces(expected):
        return True, extracted
    is_correct = verify(gold, parsed, timeout_seconds=seconds)
    if not is_correct and boxed is not None and len(_BOX.findall(answer)) > 1:
        is_correct = verify(gold, parse(f"\\boxed{{{boxed}}}", parsing_timeout=seconds), timeout_seconds=seconds)
    return bool(is_correct), extracted


def _without_spaces(latex: str) -> str:
    return re.sub(r"\s+", "", latex)


class Math(Task):
    name = "math"
    gen_len = 512
    metrics = ("correct",)
    groups = ("subject", "level")
    own_keys = groups

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        label = present(item, "label")
        if isinstance(label, bool) or not isinstance(label, (int, float, str)) or not str(label).strip():
            raise ValueError(f"label = {shortened(label)}: must be a string (LaTeX) or a number")
        for key in ("subject", "level"):
            if isinstance(item.get(key, ""), (list, dict)):
                raise ValueError(f"{key} = {shortened(item[key])}: must be a string or a number")

    def prompts(self, item: Item) -> list[str]:
        """The problem and how to answer it, unless the item already says so."""
        prompt = item["prompt"]
        return [prompt if "\\boxed" in prompt else f"{prompt}\n\n{INSTRUCTION}"]

    def entry(self, item: Item) -> Item:
        own = {key: item[key] for key in ("question_id", "prompt", "label")}
        return own | {key: str(item.get(key) or UNSPECIFIED) for key in self.groups}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        is_correct, extracted = matches_label(str(entry["label"]), answer)
        return {"correct": int(is_correct), "extracted": extracted}
