"""The language of a translation: codes and pairs that items may name, and the scripts by which others are detected."""

from __future__ import annotations

from typing import Any

import pytest

from pdevis.benchmarks.tasks.translation.target_language import OTHER, detect_language, parse_language, target_languages


@pytest.mark.parametrize(
    ("value", "language"),
    [
        ("de", "de"),
        ("pt-BR", "pt"),
        ("pt-br", "pt"),
        ("zh_Hans", "zh"),
        ("zh-Hant-TW", "zh"),
        ("zh-tw", "zh"),
        ("zho_Hans", "zh"),
        ("yue", "zh"),
        ("jpn", "ja"),
        ("fil", "fil"),
        ("es-419", "es"),
        (" en-de ", "de"),
        ("de-en", "en"),
        ("en-zh_CN", "zh"),
        ("eng_Latn-jpn_Jpan", "ja"),
        ("en-uk", "uk"),
    ],
)
def test_codes_and_pairs(value: str, language: str) -> None:
    assert parse_language(value) == language


@pytest.mark.parametrize("value", ["", "German", "jp", "en-jp", "en-ZH", "DE", "cn", "de-", "en-de-fr", "x", 3, ["de"]])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"target_language = .*: must be a language code such as de, zh or pt-BR"):
        parse_language(value)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat.", OTHER),
        ("Кошка сидит на коврике.", OTHER),
        ("बिल्ली चटाई पर बैठी है।", OTHER),
        ("القطة تجلس على السجادة.", OTHER),
        ("今天天气很好，我们去公园散步。", "zh"),
        ("苹果公司发布了 iPhone 15 Pro。", "zh"),
        ("ㄅㄆㄇ", "zh"),
        ("她喜欢日本的“の”字。", "zh"),
        ("今日は天気がいい。", "ja"),
        ("コーヒー", "ja"),
        ("고양이가 매트 위에 앉았다.", "ko"),
        ("แมวนั่งบนเสื่อ", "th"),
        ("ແມວນັ່ງ", "lo"),
        ("ឆ្មាអង្គុយ", "km"),
        ("ကြောင်", "my"),
        ("བྱི་ལ།", "bo"),
        ("The Chinese word 你好 means hello.", OTHER),
        ("42 %", OTHER),
        ("", OTHER),
    ],
)
def test_detection_by_script(text: str, language: str) -> None:
    assert detect_language([text]) == language


def test_short_references_get_the_usual_language_of_the_file() -> None:
    labels = [["今日は天気がいい。"], ["猫が座っている。"], ["東京大学"], ["iPhone 15 Pro Max Ultra 発売"], ["OK"]]
    assert target_languages([{}] * 5, labels) == ["ja", "ja", "ja", "ja", OTHER]
    assert target_languages([{}] * 4 + [{"target_language": "de-ja"}], labels)[4] == "ja"
    assert target_languages([{}] * 10, [["今天天气很好。"]] * 9 + [["OK"]]) == ["zh"] * 10
    assert target_languages([{}] * 10, [["The cat sat."]] * 9 + [["你好"]]) == [OTHER] * 10
    assert target_languages([{"target_language": None}, {"target_language": "zh"}], [["東京大学"]] * 2) == ["zh", "zh"]
