"""MGSM: grade-school mathematics in 11 languages; the answer is an integer.

Two extractions, as in the usual harnesses: `correct` takes the number after the language's answer prefix, which the
prompt asks for; `correct_flexible` takes the last number of the answer, numbers with lm-evaluation-harness's pattern.

Models write numbers with any script's digits, any country's thousands separators, and LaTeX spacing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pdevis.benchmarks.tasks.items import Item, load_items, one_of, present, shortened, text
from pdevis.benchmarks.tasks.task import Scores, Task

# Characters with an ASCII equivalent: minus signs; spaces that do not break; the Arabic separators.
_PLAIN = str.maketrans(
    {"−": "-", "－": "-", "﹣": "-", "‑": "-", "\u2009": "\xa0", "\u202f": "\xa0", "\u2007": "\xa0", "٬": ",", "٫": "."}
)
_SPACES = {"de", "es", "fr", "ru"}  # languages that write 57 500
_COMMA_DECIMAL = {"de", "es", "fr", "ru"}  # languages that write 57.500 and 3,5

_WITH_SPACES = r"\d{1,3}(?:[ \xa0]\d{3})+(?!\d)(?:[.,]\d+)?"
_WITH_NO_BREAK = r"\d{1,3}(?:\xa0\d{3})+(?!\d)(?:[.,]\d+)?"
_PACKED = r"\d+(?:[.,'’]\d+)*"


def plain(text: str) -> str:
    """The text with ASCII digits (१, ৩, ౪, ๕, ７ …), ASCII minus signs, and without LaTeX's spaces inside numbers."""
    text = (
        unicodedata.normalize("NFC", text)
        .replace("{,}", ",")
        .replace("\\,", "")
        .replace("\\!", "")
        .replace("\\ ", " ")
        .translate(_PLAIN)
    )
    return "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else _narrow(letter) for letter in text)


def _narrow(letter: str) -> str:
    """Full-width punctuation as ASCII: it occurs in numbers of Chinese and Japanese answers."""
    return chr(ord(letter) - 0xFEE0) if letter in "，．＄％＝：" else letter


def find_numbers(text: str, language: str = "en") -> list[tuple[int, str]]:
    """Find the numbers in a text that `plain` has normalised, as (position, number)."""
    spaced = _WITH_SPACES if language in _SPACES else _WITH_NO_BREAK
    pattern = re.compile(rf"(?<![\d.,])(?:(?<![\w)\]])-\s?)?(?:[$€£¥₹]\s?)?(?:{spaced}|{_PACKED})")
    return [(match.start(), match[0]) for match in pattern.finditer(text)]


def to_number(written: str, language: str = "en") -> Decimal | None:
    """Value of a written number; None if it is not a number.

    A separator followed by exactly three digits separates thousands: a comma in every language, a point if the
    language's decimal sign is a comma. Of two kinds of separators the last one is the decimal sign. 1,00,000 (lakhs) is
    accepted.
    """
    digits = re.sub(r"[\s\xa0$€£¥₹]", "", plain(written)).rstrip(".,'’")
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    digits = digits.lstrip(",'’")
    digits = re.sub(r"['’](?=\d{3}(?!\d))", "", digits)
    decimal = _decimal_sign(digits, language)
    whole, _, rest = digits.rpartition(decimal) if decimal else (digits, "", "")
    whole = whole.replace(".", "").replace(",", "")
    if not re.fullmatch(r"\d*", whole) or not re.fullmatch(r"\d*", rest) or not whole + rest:
        return None
    return sign * Decimal(f"{whole or 0}.{rest or 0}")


def _decimal_sign(digits: str, language: str) -> str | None:
    kinds = {letter for letter in digits if letter in ".,"}
    if not kinds:
        return None
    last = max(digits.rfind("."), digits.rfind(","))
    sign = digits[last]
    if len(kinds) == 2:
        return sign if digits.count(sign) == 1 else None
    if digits.count(sign) > 1:
        return None
    three = re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", digits) is not None
    separates_thousands = three and (sign == "," or language in _COMMA_DECIMAL)
    return None if separates_thousands else sign


@dataclass(frozen=True)
class Language:
    """Wording of one language: the instruction in the prompt, the answer prefix, and other phrases before an answer."""

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
    """The number after the last answer prefix that has one, in the question's language or in English."""
    answer = plain(answer)
    wordings = [LANGUAGES[language], LANGUAGES["en"]]
    prefixes = "|".join(dict.fromkeys(re.escape(wording.prefix) for wording in wordings))
    phrases = "|".join(dict.fromkeys(phrase for wording in wordings for phrase in wording.phrases))
    announced = re.compile(rf"(?:{prefixes})[\s*_]*:|(?:{phrases})", re.I)
    for match in reversed(list(announced.finditer(answer))):
        lines = (line for line in answer[match.end() :].split("\n") if line.strip(" \t\r*_:$`"))
        result = next(lines, "").rpartition("=")[2]
        if numbers := find_numbers(result, language):
            return numbers[0][1].strip()
    return None


def extract_flexible(answer: str) -> str | None:
    """The last number of an answer, by the harness's own pattern (after converting digits to ASCII)."""
    numbers = _FLEXIBLE.findall(plain(answer))
    return next(filter(None, numbers[-1])) if numbers else None


class Mgsm(Task):
    name = "mgsm"
    gen_len = 256
    metrics = ("correct", "correct_flexible")
    groups = ("language",)
    own_keys = groups

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
        """The question and, in its language, how to answer it, unless the item already says so."""
        language = LANGUAGES[item["language"]]
        if f"{language.prefix}:" in plain(item["prompt"]).replace(" :", ":"):
            return [item["prompt"]]
        return [f"{item['prompt']}\n\n{language.instruction}"]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label", "language")}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        language, label = entry["language"], _value(entry["label"])
        prefixed, flexible = extract_prefixed(answer, language), extract_flexible(answer)

        def is_correct(written: str | None) -> int:
            return int(written is not None and to_number(written, language) == label)

        return {
            "correct": is_correct(prefixed),
            "correct_flexible": is_correct(flexible),
            "extracted": prefixed,
            "extracted_flexible": flexible,
        }


def _value(label: float | str) -> Decimal | None:
    return to_number(str(label)) if isinstance(label, str) else Decimal(str(label))
