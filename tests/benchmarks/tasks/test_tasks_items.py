"""The loaders: both forms of a file, and broken ones, which are named by file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from pdevis.benchmarks.tasks import BENCHMARKS, get_task

SAMPLES = ROOT / "Data" / "samples"


def sample(name: str) -> Path:
    return next(SAMPLES.glob(f"{name}.*"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_both_forms_are_read(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    items = task.load(sample(name))
    array, lines = tmp_path / "array.txt", tmp_path / "lines.txt"
    array.write_text("\ufeff\n" + json.dumps(items, indent=2), encoding="utf-8")
    lines.write_text("\n\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n", encoding="utf-8")
    assert task.load(array) == task.load(lines) == items


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    item = {"question_id": 1, "category": "qa", "turns": ["one\u2028two\x85three"]}
    file.write_text(json.dumps(item, ensure_ascii=False), encoding="utf-8")
    assert get_task("specbench").load(file) == [item]


GOOD: dict[str, dict[str, Any]] = {
    "wmt": {"question_id": 1, "prompt": "p", "label": "l"},
    "mmlu": {"question_id": 1, "prompt": "p", "label": "A", "subject": "s"},
    "mgsm": {"question_id": 1, "prompt": "p", "label": 3, "language": "en"},
    "math": {"question_id": 1, "prompt": "p", "label": "3"},
    "ifeval": {"question_id": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "specbench": {"question_id": 1, "category": "qa", "turns": ["t"]},
}
BROKEN = [
    ("wmt", {"prompt": ["a", "b"]}, "prompt has 2 strings"),
    ("wmt", {"label": []}, "label = []: must be a list of strings"),
    ("wmt", {"label": 3}, "label = 3: must be a string"),
    ("mmlu", {"label": "E"}, "label = 'E': must be one of A, B, C, D"),
    ("mmlu", {"label": 2}, "label = 2: must be one of"),
    ("mmlu", {"subject": None}, "subject = None: must be a string"),
    ("mmlu", {"prompt": "  "}, "prompt = '  ': must be a string that is not empty"),
    ("mgsm", {"language": "pl"}, "language = 'pl': must be one of en, es"),
    ("mgsm", {"label": "many"}, "label = 'many': must be a number"),
    ("mgsm", {"label": True}, "label = True: must be a number"),
    ("math", {"label": ["1"]}, "label = ['1']: must be a string (LaTeX) or a number"),
    ("math", {"label": " "}, "must be a string (LaTeX) or a number"),
    ("ifeval", {"kwargs": []}, "kwargs has 0 objects: must have one for each of 1 instructions"),
    ("ifeval", {"instruction_id_list": ["a:b"]}, "instruction 'a:b' is unknown: must be one of change_case"),
    ("ifeval", {"kwargs": [{"num_words": 3}]}, "num_words = 3: must be one of no arguments at all"),
    (
        "ifeval",
        {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["c++ ("]}]},
        "must be a regular",
    ),
    (
        "ifeval",
        {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "most"}]},
        "less than",
    ),
    ("ifeval", {"instruction_id_list": ["combination:repeat_prompt"]}, "has no prompt_to_repeat"),
    ("specbench", {"turns": "t"}, "turns = 't': must be a list of strings"),
    ("specbench", {"turns": ["t", ""]}, "must be a list of strings"),
    ("specbench", {"category": 3}, "category = 3: must be a string"),
    ("specbench", {"question_id": None}, "question_id = None: must be an integer or a string"),
]


@pytest.mark.parametrize(("name", "change", "expected"), BROKEN)
def test_a_broken_item_is_named_by_file_and_number(name: str, change: dict, expected: str, tmp_path: Path) -> None:
    good, bad = GOOD[name], GOOD[name] | {"question_id": 2} | change
    array, lines = tmp_path / "array.json", tmp_path / "lines.jsonl"
    array.write_text(json.dumps([good, bad]))
    lines.write_text(json.dumps(good) + "\n\n" + json.dumps(bad) + "\n")
    for file, location in ((array, "item 2"), (lines, "line 3")):
        with pytest.raises(ValueError) as caught:
            get_task(name).load(file, k=1)  # beyond the items that are asked for, too
        message = str(caught.value)
        assert message.startswith(f"{file}: {location}: ")
        assert expected in message
        assert "\n" not in message


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_key_is_named(name: str, tmp_path: Path) -> None:
    for key in GOOD[name]:
        file = tmp_path / "items.json"
        file.write_text(json.dumps([{other: value for other, value in GOOD[name].items() if other != key}]))
        with pytest.raises(ValueError, match=rf"items\.json: item 1: has no {key}"):
            get_task(name).load(file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no items"),
        (b"[]", "holds no items"),
        (b'[{"question_id": 1,\n}]', "line 2: not valid JSON"),
        (b'{"question_id": 1}\n{"question', "line 1: has no category"),
        (b'{"question_id": 1, "category": "c", "turns": ["t"]}\n{"question', "line 2: not valid JSON"),
        (b'{"question_id": 1, "category": "c", "turns": ["t"]}\n"text"', "line 2: is a string: must be a JSON object"),
        (b"[3]", "item 1: is a number: must be a JSON object"),
        (b'{"question_id": 1,\n\xff\xfe', "must be UTF-8 text: invalid start byte at byte 19"),
        (
            b'{"question_id": 1, "category": "c", "turns": ["t"]}\n' * 2,
            "line 2: question_id = 1 is also that of line 1",
        ),
    ],
)
def test_a_broken_file_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        get_task("specbench").load(file)
    assert str(caught.value).startswith(f"{file}: {expected}")


def test_wrong_paths_and_counts_are_named(tmp_path: Path) -> None:
    task = get_task("wmt")
    with pytest.raises(ValueError, match=r"none\.json: does not exist"):
        task.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="is a folder"):
        task.load(tmp_path)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"k = {k}: must be an integer >= 1"):
            task.load(sample("wmt"), k=k)
    with pytest.raises(ValueError, match="benchmark = 'gsm': must be one of wmt, mmlu"):
        get_task("gsm")
