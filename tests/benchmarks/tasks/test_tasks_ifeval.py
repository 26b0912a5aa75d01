"""IFEval: the official checkers, offline and deterministic; answers that follow instructions, and others."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.evaluation import score_corpus
from pdevis.benchmarks.tasks import get_task, ifeval
from pdevis.benchmarks.tasks.ifeval import INSTRUCTIONS, checkers

FIVE = "Dr. Smith saw the sea at 5 p.m. on Monday. It was grey. The wind blew. Salt was in the air! Was it cold?"

CAPITALS = "THE BICYCLE IS THE BEST OF ALL THINGS THAT PEOPLE HAVE MADE WITH THEIR HANDS."

# An instruction, its arguments, an answer that follows it and one that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("punctuation:no_comma", {}, "Rain fell and fell.", "Rain fell, and fell."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    ("change_case:english_lowercase", {}, "bread rises because of yeast.", "Bread rises because of yeast."),
    ("change_case:english_capital", {}, CAPITALS, CAPITALS.replace("THE", "the")),
    # Dr. and p.m. end no sentence: five, not seven.
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 5}, FIVE, FIVE[:60]),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 6}, FIVE, f"{FIVE} Yes."),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 4},
        "One two three",
        "One two three four",
    ),
    ("keywords:existence", {"keywords": ["salt", "wind"]}, "The wind is full of salt.", "The wind is full of sand."),
    ("keywords:forbidden_words", {"forbidden_words": ["time"]}, "Sometimes a clock stops.", "Time stops."),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea, sea!", "Sea!"),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        "A zigzag of pizza.",
        "A zoo.",
    ),
    ("detectable_format:title", {}, "<<A day>>\nIt began well.", "<A day>\nIt began well."),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Thanks.\nP.S. See you.", "Thanks. See you."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Come on [date] at [time].", "Come on [date]."),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "It depends."),
    ("detectable_format:json_format", {}, '```json\n{"name": "Ann"}\n```', "name: Ann"),
    ("startend:quotation", {}, '"They eat shrimp."', '"They" eat shrimp.'),
    ("startend:end_checker", {"end_phrase": "RIDE ON."}, "So ride on.", "Ride on, he said."),
    (
        "language:response_language",
        {"language": "de"},
        "Ich esse am liebsten Brot mit Käse.",
        "I like bread and cheese.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and two"),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "The BBC and the U.S. agree.",
        "The BBC agrees.",
    ),
    ("combination:two_responses", {}, "First\n******\nSecond", "First\n******\nFirst"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Say hi.\nHi!", "Hi! Say hi."),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section one\na\nSection two\nb",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "winter"},
        "One.\n\nWinter came.",
        "One.\n\nThe winter came.",
    ),
]


def entry(*instructions: tuple[str, dict[str, Any]], question: int = 1) -> dict[str, Any]:
    names, given = zip(*instructions)
    return {"question_id": question, "prompt": "p", "instruction_id_list": list(names), "kwargs": list(given)}


@pytest.mark.parametrize(("name", "given", "follows", "fails"), CASES, ids=[case[0] for case in CASES])
def test_instructions(name: str, given: dict, follows: str, fails: str) -> None:
    task = get_task("ifeval")
    assert task.score(entry((name, given)), follows)["prompt_strict"] == 1
    assert task.score(entry((name, given)), fails)["prompt_strict"] == 0
    assert task.score(entry((name, given)), "  \n")["prompt_loose"] == 0  # an empty answer follows nothing


def test_every_instruction_is_known_and_tried() -> None:
    official = checkers().instructions_registry.INSTRUCTION_DICT
    assert set(INSTRUCTIONS) == set(official) == {case[0] for case in CASES}
    for name, given, _, _ in CASES:
        instruction = official[name](name)
        instruction.build_description(**given)
        assert set(instruction.get_instruction_args_keys()) == set(INSTRUCTIONS[name])


def test_scores_equal_those_of_the_harness() -> None:
    process_results = checkers().process_results
    nulls = dict.fromkeys(("num_words", "keywords", "relation", "language"))
    for i, (name, given, *answers) in enumerate(CASES):
        for answer in (*answers, f"Sure!\n{answers[0]}", answers[1].replace("one", "*one*")):
            example = entry((name, nulls | given), ("punctuation:no_comma", dict(nulls)), question=i)
            scores = get_task("ifeval").score(example, answer)
            official = process_results({"key": i, **example}, [answer])
            assert scores["followed_strict"] == official["inst_level_strict_acc"], (name, answer)
            assert scores["followed_loose"] == official["inst_level_loose_acc"], (name, answer)
            assert scores["prompt_strict"] == official["prompt_level_strict_acc"]
            assert scores["prompt_loose"] == official["prompt_level_loose_acc"]


def test_a_text_without_language_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    assert get_task("ifeval").score(entry(("language:response_language", {"language": "de"})), "123")["prompt_strict"]
    assert not caplog.records


def test_loose_ignores_text_around_the_answer() -> None:
    score = get_task("ifeval").score(entry(("startend:quotation", {})), 'Of course:\n"They eat shrimp."')
    assert (score["prompt_strict"], score["prompt_loose"]) == (0, 1)


def test_prompt_and_instruction_level() -> None:
    task = get_task("ifeval")
    entries = [entry(CASES[0][:2], CASES[8][:2]), entry(CASES[0][:2], question=2)]
    result = score_corpus(task, entries, ["Time flies.", "Rain fell."])  # no comma, but a forbidden word; no comma
    assert result["prompt_strict"]["score"] == pytest.approx(1 / 2)
    assert result["instruction_strict"]["score"] == pytest.approx(2 / 3)
    assert "lm-eval:" in result["instruction_loose"]["signature"]
    assert task.corpus([], [], []) == {}


def test_random_draws_are_the_same_every_time_and_nobody_s_else() -> None:
    """An invalid letter ("#") makes the checker draw one: it depends on the question id only."""
    task = get_task("ifeval")
    kwargs = {"letter": "#", "let_frequency": 4, "let_relation": "at least"}
    answer = "The quick brown fox jumps over the lazy dog, then eats."

    def scores() -> list[int]:
        examples = [entry(("keywords:letter_frequency", kwargs), question=i) for i in range(30)]
        return [task.score(example, answer)["prompt_strict"] for example in examples]

    random.seed(1)
    first, state = scores(), random.getstate()
    random.seed(1)
    assert random.getstate() == state  # nothing of the program's own random numbers was used up
    random.seed(2)
    assert scores() == first
    assert 0 < sum(first) < 30


def test_entries_drop_the_empty_arguments() -> None:
    item = entry(("punctuation:no_comma", {"num_words": None}), ("keywords:existence", {"keywords": ["a"], "x": None}))
    assert get_task("ifeval").entry(item)["kwargs"] == [{}, {"keywords": ["a"]}]


def test_the_sentence_model_is_made_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "cache"))
    folder = ifeval.prepare_punkt()
    files = {file.name for file in (folder / ifeval.PUNKT_MODEL).iterdir()}
    assert files == set(ifeval.PUNKT_FILES)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    stamp = folder.stat().st_mtime_ns
    assert ifeval.prepare_punkt() == folder
    assert folder.stat().st_mtime_ns == stamp
    (folder / ifeval.PUNKT_MODEL / ifeval.PUNKT_FILES[0]).unlink()
    assert ifeval.is_punkt_complete(ifeval.prepare_punkt())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PDEVIS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="set PDEVIS_CACHE to another"):
        ifeval.prepare_punkt()


def test_a_fresh_machine_without_network(tmp_path: Path) -> None:
    """In a new process with an empty cache and no home: nothing is downloaded, and scores do not vary."""
    code = (
        "import json, socket, sys\n"
        "def no(*each, **more): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "from pdevis.benchmarks.tasks import get_task\n"
        "assert 'lm_eval' not in sys.modules and 'nltk' not in sys.modules\n"
        "entries, texts = json.load(sys.stdin)\n"
        "print(json.dumps([get_task('ifeval').score(*each) for each in zip(entries, texts)]))"
    )
    entries = [entry(case[:2]) for case in CASES]
    answers = [case[2] for case in CASES]
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([entries, answers]),
        env=os.environ | {"PDEVIS_CACHE": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert all(score["prompt_strict"] == 1 for score in json.loads(run.stdout))
    assert "punkt" not in run.stderr
