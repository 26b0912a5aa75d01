"""MGSM: grade-school mathematics in 11 languages; the answer is a whole number.

Two extractions, as in the usual harnesses: `correct` takes the number behind the language's answer prefix, which the
prompt asks for; `correct_flexible` takes the last number of the answer, found with lm-evaluation-harness's pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, one_of, present, shortened, text
from pdevis.benchmarks.tasks.numbers import find_numbers, plain, to_number


@dataclass(frozen=True)
class Language:
    """How a language asks for an answer, and how it announces one without being asked."""

    instruction: str
    prefix: str
    phrases: tuple[str, ...]  # regular expressions; the number follows


LANGUAGES = {
    "en": Language(
        'Solve the problem step by step. Write the result as a number on the last line, after "Answer:".',
        "Answer",
        (r"answer\s+is", r"answer\s*="),
    ),
    "es": Language(
        "Resuelve el problema paso a paso. Escribe el resultado como número en la última línea, tras «Respuesta:».",
        "Respuesta",
        (r"respuesta\s+(?:final\s+|correcta\s+)?es",),
    ),
    "fr": Language(
        "Résous le problème étape par étape. Écris le résultat en chiffres sur la dernière ligne, après « Réponse : ».",
        "Réponse",
        (r"réponse\s+(?:finale\s+)?est",),
    ),
    "de": Language(
        "Löse die Aufgabe Schritt für Schritt. Schreibe das Ergebnis als Zahl in die letzte Zeile, hinter „Antwort:“.",
        "Antwort",
        (r"antwort\s+(?:lautet|ist)",),
    ),
    "ru": Language(
        "Решите задачу шаг за шагом. Запишите результат числом в последней строке после слова «Ответ:».",
        "Ответ",
        (r"ответ\s*[—–-]", r"ответ\s+равен"),
    ),
    "zh": Language("请一步一步解题，并在最后一行的“答案：”后面用数字写出结果。", "答案", (r"答案\s*(?:是|为)",)),
    "ja": Language(
        "順を追って問題を解き、最後の行の「答え：」の後に結果を数字で書いてください。", "答え", (r"答え\s*は",)
    ),
    "th": Language(
        "แก้โจทย์ทีละขั้นตอน แล้วเขียนผลลัพธ์เป็นตัวเลขในบรรทัดสุดท้ายหลังคำว่า “คำตอบ:”", "คำตอบ", (r"คำตอบ\s*(?:คือ|เท่ากับ)",)
    ),
    "sw": Language(
        'Tatua swali hatua kwa hatua. Andika jibu kwa tarakimu kwenye mstari wa mwisho, baada ya "Jibu:".',
        "Jibu",
        (r"jibu\s+(?:sahihi\s+)?ni",),
    ),
    "bn": Language(
        "ধাপে ধাপে সমস্যাটির সমাধান করো। শেষ লাইনে “উত্তর:” এর পরে ফলাফলটি সংখ্যায় লেখো।", "উত্তর", (r"উত্তর\s*(?:হল|হলো|হচ্ছে)",)
    ),
    "te": Language("సమస్యను దశలవారీగా పరిష్కరించండి. చివరి పంక్తిలో “సమాధానం:” తర్వాత ఫలితాన్ని అంకెలలో రాయండి.", "సమాధానం", (r"సమాధానం(?=\s+\d)",)),
}

_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # lm-evaluation-harness, task mgsm, filter flexible-extract


def extract_prefixed(answer: str, language: str) -> str | None:
    """The number behind the last answer prefix that has one, in the question's language or in English."""
    answer = plain(answer)
    known = [LANGUAGES[language], LANGUAGES["en"]]
    prefixes = "|".join(dict.fromkeys(re.escape(each.prefix) for each in known))
    phrases = "|".join(dict.fromkeys(phrase for each in known for phrase in each.phrases))
    announced = re.compile(rf"(?:{prefixes})[\s*_]*:|(?:{phrases})", re.I)
    for match in reversed(list(announced.finditer(answer))):
        lines = (line for line in answer[match.end() :].split("\n") if line.strip(" \t\r*_:$`"))
        result = next(lines, "").rpartition("=")[2]
        if numbers := find_numbers(result, language):
            return numbers[0][1].strip()
    return None


def extract_flexible(answer: str) -> str | None:
    """The last number of an answer, by the harness's own pattern (after bringing digits to ASCII)."""
    found = _FLEXIBLE.findall(plain(answer))
    return next(filter(None, found[-1])) if found else None


class Mgsm:
    name = "mgsm"
    metrics = ("correct", "correct_flexible")
    groups = ("language",)

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        one_of(item, "language", LANGUAGES)
        label = present(item, "label")
        if isinstance(label, bool) or not isinstance(label, (int, float, str)) or _value(label) is None:
            raise ValueError(f"label = {shortened(label)}: must be a number")

    def prompts(self, item: Item) -> list[str]:
        """The question and, in its language, how to answer it (left out where the item says so itself)."""
        language = LANGUAGES[item["language"]]
        if f"{language.prefix}:" in plain(item["prompt"]).replace(" :", ":"):
            return [item["prompt"]]
        return [f"{item['prompt']}\n\n{language.instruction}"]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label", "language")}

    def score(self, entry: Item, text: str) -> dict[str, Any]:
        language, label = entry["language"], _value(entry["label"])
        prefixed, flexible = extract_prefixed(text, language), extract_flexible(text)

        def right(written: str | None) -> int:
            return int(written is not None and to_number(written, language) == label)

        return {
            "correct": right(prefixed),
            "correct_flexible": right(flexible),
            "extracted": prefixed,
            "extracted_flexible": flexible,
        }

    def corpus(self, entries: list[Item], texts: list[str]) -> dict[str, Any]:
        return {}

    def compare(self, entries: list[Item], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        return {}


def _value(label: float | str) -> Decimal | None:
    return to_number(str(label)) if isinstance(label, str) else Decimal(str(label))
