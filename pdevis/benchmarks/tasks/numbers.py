"""Numbers as models write them: any script's digits, thousands separators of any country, LaTeX spacing."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

# Characters that stand for a plain one: minus signs; spaces that do not break; the Arabic separators.
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
    return "".join(str(unicodedata.decimal(each)) if each.isdecimal() else _narrow(each) for each in text)


def _narrow(letter: str) -> str:
    """Full-width punctuation as ASCII: it stands in numbers of Chinese and Japanese answers."""
    return chr(ord(letter) - 0xFEE0) if letter in "，．＄％＝：" else letter


def find_numbers(text: str, language: str = "en") -> list[tuple[int, str]]:
    """The numbers in a text that went through `plain`, with their positions."""
    spaced = _WITH_SPACES if language in _SPACES else _WITH_NO_BREAK
    pattern = re.compile(rf"(?<![\d.,])(?:(?<![\w)\]])-\s?)?(?:[$€£¥₹]\s?)?(?:{spaced}|{_PACKED})")
    return [(match.start(), match[0]) for match in pattern.finditer(text)]


def to_number(written: str, language: str = "en") -> Decimal | None:
    """The value of a written number; None where it is none.

    A separator followed by exactly three digits parts thousands: a comma in every language, a point where the decimal
    sign is a comma. Of two kinds of separators the last one is the decimal sign. 1,00,000 (lakhs) is understood.
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
    kinds = {each for each in digits if each in ".,"}
    if not kinds:
        return None
    last = max(digits.rfind("."), digits.rfind(","))
    sign = digits[last]
    if len(kinds) == 2:
        return sign if digits.count(sign) == 1 else None
    if digits.count(sign) > 1:
        return None
    three = re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", digits) is not None
    parts_thousands = three and (sign == "," or language in _COMMA_DECIMAL)
    return None if parts_thousands else sign
