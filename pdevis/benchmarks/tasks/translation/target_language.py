"""The language that an item is translated into: named by the item, or detected by the script of its references.

    target_language({"target_language": "en-zh", "label": "…"})  # "zh"
    target_language({"label": "猫坐在垫子上。"})                   # "zh", by its characters

Detection distinguishes the languages that need other tokenizers, and only by script: every other one is `OTHER`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import regex

KEY = "target_language"
OTHER = "other"  # a language whose words are separated by spaces

_CODE = regex.compile(  # of ISO 639-1
    r"a[abefkmnrsvyz]|b[aeghimnors]|c[aehorsuvy]|d[aevz]|e[elnostu]|f[afijory]|g[adlnuv]|h[aeiortuyz]|"
    r"i[adegikostu]|j[av]|k[agijklmnorsuvwy]|l[abginotuv]|m[ghiklnrsty]|n[abdeglnorvy]|o[cjmrs]|p[ailst]|"
    r"qu|r[mnouw]|s[acdeghiklmnoqrstuvw]|t[aeghiklnorstwy]|u[gkrz]|v[eio]|w[ao]|xh|y[io]|z[ahu]"
)
_LONG_CODES = {  # of languages that have a short code and other tokenizers
    **dict.fromkeys(("zho", "chi", "cmn", "yue", "wuu", "lzh", "hak", "nan"), "zh"),
    **{"jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "mya": "my", "bur": "my"},
    **{"bod": "bo", "tib": "bo", "dzo": "dz"},
}
_LOWER_CASE_REGIONS = ("zh-cn", "zh-tw", "zh-hk", "zh-mo", "zh-sg", "pt-br")  # no pairs, though tw and br are languages
_LOCALE = r"([a-z]{2,3})(?:[-_][A-Z][a-z]{3})?(?:[-_](?!ZH|JA|KO)(?:[A-Z]{2}|\d{3}))?"
_PAIR = regex.compile(rf"(?:{_LOCALE}[-_])?{_LOCALE}")

# Scripts by which a language is detected. Words between spaces count as one character of the other scripts.
_SCRIPTS = {
    "zh": r"\p{Han}|\p{Bopomofo}",
    "ja": r"\p{Hiragana}|\p{Katakana}|\p{Han}",
    "ko": r"\p{Hangul}+",
    "th": r"\p{Thai}",
    "lo": r"\p{Lao}",
    "km": r"\p{Khmer}",
    "my": r"\p{Myanmar}",
    "bo": r"\p{Tibetan}",
}
_PATTERNS = {language: regex.compile(script) for language, script in _SCRIPTS.items()}
_KANA = regex.compile(r"\p{Hiragana}|\p{Katakana}")
_OTHER_WORD = regex.compile(
    r"(?V1)[\p{L}--[\p{Han}\p{Bopomofo}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]]"
    r"[\p{L}\p{M}'’]*"
)


def parse_language(value: Any) -> str:
    """The language of a code (de, zh, pt-BR, zh_Hans, zho_Hans), or the second of a pair (en-de, en-zh_CN).

    Raises:
        ValueError: for anything else.
    """
    allowed = "must be a language code such as de, zh or pt-BR, or a pair such as en-de"
    if not isinstance(value, str):
        raise ValueError(f"{KEY} = {value!r}: {allowed}")
    text = value.strip()
    if text.replace("_", "-") in _LOWER_CASE_REGIONS:
        text = text[:2]
    found = _PAIR.fullmatch(text)
    languages = [code for code in (found.groups() if found else ()) if code]
    if not languages or any(len(code) == 2 and not _CODE.fullmatch(code) for code in languages):
        raise ValueError(f"{KEY} = {value!r}: {allowed}")
    return _LONG_CODES.get(languages[-1], languages[-1])


def detect_language(texts: Sequence[str]) -> str:
    """The language of texts by their scripts: zh, ja, ko, th, lo, km, my, bo, or `OTHER`."""
    joined = "\n".join(texts)
    counts = Counter({language: len(pattern.findall(joined)) for language, pattern in _PATTERNS.items()})
    kana = len(_KANA.findall(joined))
    del counts["zh" if 5 * kana > counts["zh"] else "ja"]  # Chinese may quote a few kana
    language, count = counts.most_common(1)[0]
    return language if count and count >= len(_OTHER_WORD.findall(joined)) else OTHER


def target_language(item: Mapping[str, Any], references: Sequence[str]) -> str:
    """The language that an item names; if it names none, the detected one of its references."""
    return parse_language(item[KEY]) if item.get(KEY) is not None else detect_language(references)


def target_languages(items: Sequence[Mapping[str, Any]], references: Sequence[Sequence[str]]) -> list[str]:
    """The language of each item of a file.

    Short references may be of two languages by their script (東京大学), or mostly names in another one. An item that
    names no language therefore gets the one detected most often, if its references have a character of that script, or
    if nine of ten such items are in that language.
    """
    languages = [target_language(item, labels) for item, labels in zip(items, references)]
    detected = [i for i, item in enumerate(items) if item.get(KEY) is None]
    if not detected:
        return languages
    usual, count = Counter(languages[i] for i in detected).most_common(1)[0]
    script = _PATTERNS.get(usual)
    for i in detected:
        if 10 * count >= 9 * len(detected) or (script and script.search("\n".join(references[i]))):
            languages[i] = usual
    return languages
