"""MGSM's scorer: numbers in the notation of many countries, answer prefixes, and the harness's own extraction."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pdevis.benchmarks.tasks import get_task
from pdevis.benchmarks.tasks.mgsm import LANGUAGES, extract_flexible, plain, to_number

RIGHT = [
    ("en", "Answer: 57,500"),
    ("en", "She has $1,234.00 left.\n**Answer:** $57,500.00"),
    ("en", "Answer: $57{,}500$"),
    ("en", "Answer: \\boxed{57500}"),
    ("en", "Answer:\n\n57500"),
    ("en", "Answer: 50,000 + 7,500 = 57,500 dollars"),
    ("en", "The answer is 57500.\nI hope this answer helps 3 people."),
    ("en", "First try. Answer: 12\nAnswer: 57500"),
    ("de", "Antwort: 57.500 Euro"),
    ("de", "Antwort: 57500,00"),
    ("de", "Die Antwort lautet 57.500."),
    ("es", "La respuesta es 57.500."),
    ("es", "Respuesta: 57 500 dólares"),
    ("fr", "Réponse : 57\u202f500 euros"),
    ("fr", "Réponse : 57 500"),
    ("fr", "Re\u0301ponse : 57500"),  # the accent as a character of its own
    ("ru", "Ответ: 57 500 рублей"),
    ("ru", "Ответ — 57500"),
    ("zh", "答案：57,500。"),
    ("zh", "答案是 57500。"),
    ("ja", "答えは57500です。"),
    ("ja", "答え：５７，５００ドル"),
    ("th", "คำตอบ: ๕๗,๕๐๐ บาท"),
    ("th", "คำตอบคือ 57500"),
    ("sw", "Jibu ni 57,500."),
    ("bn", "উত্তর: ৫৭,৫০০ টাকা"),
    ("te", "సమాధానం: ౫౭౫౦౦"),
    ("te", "సమాధానం 57,500"),
    ("te", "Answer: 57500"),  # the English prefix counts everywhere
]
WRONG = [
    ("en", "Answer: 57.500"),  # a decimal point in English
    ("en", "Answer: 57,5000"),
    ("en", "Answer: -57500"),
    ("en", "Answer: 575"),
    ("en", "Answer: fifty-seven"),
    ("en", "It is 57500 of course"),  # without a prefix
    ("en", ""),
    ("de", "Antwort: 57,5"),
    ("de", "Antwort: 57500,5"),
    ("bn", "উত্তর: ৫৭৫"),
    ("th", "57,500 คำตอบ: ๕๗"),
    ("ja", "答えは500です。57500ではありません"),
    ("fr", "57500. Réponse : 57"),
]


def entry(language: str, label: object = 57500) -> dict:
    return {"question_id": 1, "prompt": "p", "label": label, "language": language}


@pytest.mark.parametrize(("language", "answer"), RIGHT)
def test_right_answers(language: str, answer: str) -> None:
    score = get_task("mgsm").score(entry(language), answer)
    assert score["correct"] == 1, score


@pytest.mark.parametrize(("language", "answer"), WRONG)
def test_wrong_answers(language: str, answer: str) -> None:
    score = get_task("mgsm").score(entry(language), answer)
    assert score["correct"] == 0, score


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_prefix(language: str) -> None:
    task, known = get_task("mgsm"), LANGUAGES[language]
    assert f"{known.prefix}:" in plain(known.instruction).replace(" :", ":")
    assert task.score(entry(language, 18), f"1 + 2 …\n{known.prefix}: 18")["correct"] == 1
    assert task.score(entry(language, 18), f"18\n{known.prefix}: 19")["correct"] == 0
    asked = task.prompts({"prompt": "3 + 4?", "language": language})
    assert asked == [f"3 + 4?\n\n{known.instruction}"]
    assert task.prompts({"prompt": asked[0], "language": language}) == asked


@pytest.mark.parametrize("label", [18, 18.0, "18", "18.0"])
def test_labels_may_be_numbers_or_texts(label: object) -> None:
    assert get_task("mgsm").score(entry("en", label), "Answer: 18")["correct"] == 1


@pytest.mark.parametrize(
    ("written", "language", "value"),
    [
        ("1,234,567", "en", "1234567"),
        ("1,234.5", "en", "1234.5"),
        ("1.234,5", "de", "1234.5"),
        ("1.234.567", "de", "1234567"),
        ("1,00,000", "bn", "100000"),
        ("1'000'000", "de", "1000000"),
        ("1,200", "de", "1200"),  # read as thousands: whole numbers are asked for
        ("0.125", "de", "0.125"),
        ("0,125", "en", "0.125"),
        ("3,5", "fr", "3.5"),
        ("−7", "en", "-7"),
        ("٣", "en", "3"),
        ("18.", "en", "18"),
        ("$", "en", None),
        (".", "en", None),
        ("", "en", None),
    ],
)
def test_numbers(written: str, language: str, value: str | None) -> None:
    assert to_number(written, language) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    "answer",
    [
        "It is 18",
        "$1,234.50 in all",
        "3 of 5 are -7",
        "1.5.",
        "none",
        "",
        "a 5",
        "10-3",
        "x=5,",
        "7 8 9\n10",
        "$$",
        "18 $",
    ],
)
def test_flexible_extraction_is_the_harness_s(answer: str) -> None:
    from lm_eval.filters.extraction import RegexFilter

    harness = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    expected = harness.apply([[answer]], [{}])[0][0]
    assert (extract_flexible(answer) or "[invalid]") == expected


def test_flexible_extraction_reads_other_digits() -> None:
    score = get_task("mgsm").score(entry("bn"), "মোট ৫৭,৫০০ টাকা")
    assert (score["correct"], score["correct_flexible"]) == (0, 1)
