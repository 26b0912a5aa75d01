"""IFEval: instructions whose observance can be checked by a program, here lm-evaluation-harness's official checkers.

They are made offline and deterministic: the sentence model comes from a package (`punkt`), the language detector gets a
fixed seed, and the random letter that a checker draws for some items is drawn from a seed of the item.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, present, shortened, text, texts
from pdevis.benchmarks.tasks.punkt import prepare_punkt

_RELATIONS = ("less than", "at least")
_NUMBER, _TEXT, _PATTERN, _PATTERNS, _RELATION = "number", "text", "pattern", "patterns", "relation"

# What each instruction takes, and of what kind; checkers use patterns as regular expressions.
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "change_case:capital_word_frequency": {"capital_relation": _RELATION, "capital_frequency": _NUMBER},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _TEXT},
    "combination:two_responses": {},
    "detectable_content:number_placeholders": {"num_placeholders": _NUMBER},
    "detectable_content:postscript": {"postscript_marker": _PATTERN},
    "detectable_format:constrained_response": {},
    "detectable_format:json_format": {},
    "detectable_format:multiple_sections": {"section_spliter": _PATTERN, "num_sections": _NUMBER},
    "detectable_format:number_bullet_lists": {"num_bullets": _NUMBER},
    "detectable_format:number_highlighted_sections": {"num_highlights": _NUMBER},
    "detectable_format:title": {},
    "keywords:existence": {"keywords": _PATTERNS},
    "keywords:forbidden_words": {"forbidden_words": _PATTERNS},
    "keywords:frequency": {"keyword": _PATTERN, "frequency": _NUMBER, "relation": _RELATION},
    "keywords:letter_frequency": {"letter": _TEXT, "let_frequency": _NUMBER, "let_relation": _RELATION},
    "language:response_language": {"language": _TEXT},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _NUMBER,
        "nth_paragraph": _NUMBER,
        "first_word": _TEXT,
    },
    "length_constraints:number_paragraphs": {"num_paragraphs": _NUMBER},
    "length_constraints:number_sentences": {"num_sentences": _NUMBER, "relation": _RELATION},
    "length_constraints:number_words": {"num_words": _NUMBER, "relation": _RELATION},
    "punctuation:no_comma": {},
    "startend:end_checker": {"end_phrase": _TEXT},
    "startend:quotation": {},
}


@cache
def checkers() -> Any:
    """lm-evaluation-harness's module. Its import takes seconds, and looks for nltk's data, which must be there."""
    folder = str(prepare_punkt())
    import nltk

    nltk.data.path.insert(0, folder)
    from lm_eval.tasks.ifeval import utils

    return utils


def follow(entry: Item, answer: str) -> tuple[list[bool], list[bool]]:
    """Which of the entry's instructions an answer follows, strictly and loosely."""
    official = checkers()
    given = [{key: value for key, value in each.items() if value is not None} for each in entry["kwargs"]]
    example = official.InputExample(entry["question_id"], entry["instruction_id_list"], entry["prompt"], given)
    results = []
    for check in (official.test_instruction_following_strict, official.test_instruction_following_loose):
        with fixed_randomness(entry["question_id"]), silence():
            results.append(list(check(example, answer).follow_instruction_list))
    return results[0], results[1]


@contextmanager
def fixed_randomness(question_id: int | str) -> Iterator[None]:
    """Seed what the checkers draw from, and put everything back afterwards."""
    from langdetect import DetectorFactory

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(f"ifeval {question_id}")
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


@contextmanager
def silence() -> Iterator[None]:
    """Without the checkers' error message, whole answer included, wherever an answer's language cannot be told."""
    logger = logging.getLogger("lm_eval.tasks.ifeval.instructions")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


class IfEval:
    name = "ifeval"
    metrics = ("prompt_strict", "prompt_loose")
    groups: tuple[str, ...] = ()

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        names, kwargs = texts(item, "instruction_id_list"), present(item, "kwargs")
        if not isinstance(kwargs, list) or not all(isinstance(each, dict) for each in kwargs):
            raise ValueError(f"kwargs = {shortened(kwargs)}: must be a list of JSON objects")
        if len(kwargs) != len(names):
            raise ValueError(f"kwargs holds {len(kwargs)} objects: must hold one for each of {len(names)} instructions")
        for name, given in zip(names, kwargs):
            if name not in INSTRUCTIONS:
                raise ValueError(f"instruction {name!r} is unknown: must be one of {', '.join(INSTRUCTIONS)}")
            _check_arguments(name, given)

    def prompts(self, item: Item) -> list[str]:
        return [item["prompt"]]

    def entry(self, item: Item) -> Item:
        given = [{key: value for key, value in each.items() if value is not None} for each in item["kwargs"]]
        return {key: item[key] for key in ("question_id", "prompt", "instruction_id_list")} | {"kwargs": given}

    def score(self, entry: Item, text: str) -> dict[str, Any]:
        strict, loose = follow(entry, text)
        return {
            "prompt_strict": int(all(strict)),
            "prompt_loose": int(all(loose)),
            "followed_strict": strict,
            "followed_loose": loose,
        }

    def corpus(self, entries: list[Item], texts: list[str]) -> dict[str, Any]:
        """The four official accuracies; those of instructions count every instruction once, not every prompt."""
        if not entries:
            return {}
        scores = [self.score(entry, text) for entry, text in zip(entries, texts)]
        signature = f"lm-eval:{version('lm-eval')}|nltk:{version('nltk')}|langdetect:{version('langdetect')}|seed:fixed"
        found = {}
        for kind in ("strict", "loose"):
            prompts = [score[f"prompt_{kind}"] for score in scores]
            single = [followed for score in scores for followed in score[f"followed_{kind}"]]
            for level, values in (("prompt", prompts), ("instruction", single)):
                found[f"{level}_{kind}"] = {"score": sum(values) / len(values), "signature": signature}
        return found

    def compare(self, entries: list[Item], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        return {}


def _check_arguments(name: str, given: dict[str, Any]) -> None:
    allowed = INSTRUCTIONS[name]
    for key, value in given.items():
        if value is None:
            continue
        where = f"{name}: {key} = {shortened(value)}"
        if key not in allowed:
            raise ValueError(f"{where}: must be one of {', '.join(allowed) or 'no arguments at all'}")
        kind = allowed[key]
        if kind == _RELATION and value not in _RELATIONS:
            raise ValueError(f"{where}: must be one of {', '.join(_RELATIONS)}")
        if kind == _NUMBER and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise ValueError(f"{where}: must be a number >= 0")
        if kind in (_TEXT, _PATTERN) and not isinstance(value, str):
            raise ValueError(f"{where}: must be a string")
        if kind == _PATTERNS and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise ValueError(f"{where}: must be a list of texts")
        for pattern in value if kind == _PATTERNS else [value] if kind == _PATTERN else []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{where}: is no regular expression ({error}), which the checker needs") from None
    if name == "combination:repeat_prompt" and not given.get("prompt_to_repeat"):
        raise ValueError(f"{name}: has no prompt_to_repeat")
