"""Translations into any language: scores equal sacrebleu's own with the language's tokenizer, and ROUGE by hand."""

from __future__ import annotations

from typing import Any

import pytest
import sacrebleu
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from pdevis.benchmarks.tasks import get_task
from pdevis.benchmarks.tasks.translation import translation_metrics
from pdevis.benchmarks.tasks.translation.translation_metrics import UnicodeTokenizer, bleu_tokenizer

SENTENCES = {  # language: a reference, and a translation that differs from it
    "en": ("The cat sat on the mat today.", "The dog sat on the mat today."),
    "de": ("Über Öl und Öfen ärgern sich Köche.", "Über Öl und Äpfel ärgern sich Köche."),
    "ru": ("Кошка сидит на коврике сегодня.", "Собака сидит на коврике сегодня."),
    "el": ("Η γάτα κάθισε σήμερα στο χαλί.", "Ο σκύλος κάθισε σήμερα στο χαλί."),
    "hi": ("बिल्ली आज चटाई पर बैठी है।", "कुत्ता आज चटाई पर बैठा है।"),
    "ar": ("القطة تجلس على السجادة اليوم.", "الكلب يجلس على السجادة اليوم."),
    "zh": ("今天天气很好，我们去公园散步。", "今天天气不错，我们去公园走走。"),
    "ja": ("今日は天気がいいので、公園を散歩します。", "今日は天気が悪いので、公園を散歩しません。"),
    "ko": ("고양이가 오늘 매트 위에 앉았다.", "개가 오늘 매트 위에 앉았다."),
    "th": ("วันนี้แมวนั่งบนเสื่อ", "วันนี้หมานั่งบนเสื่อ"),
    "lo": ("ແມວນັ່ງເທິງເສື່ອ", "ໝານັ່ງເທິງເສື່ອ"),
    "km": ("ឆ្មាអង្គុយលើកន្ទេល", "ឆ្កែអង្គុយលើកន្ទេល"),
    "my": ("ကြောင်ကဖျာပေါ်မှာထိုင်တယ်", "ခွေးကဖျာပေါ်မှာထိုင်တယ်"),
}
TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
ASIAN = ("zh", "ja")


@pytest.fixture(autouse=True)
def _without_dictionaries(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Score Japanese and Korean as on a machine that has not installed sacrebleu's dictionaries."""
    import sacrebleu.tokenizers.tokenizer_ja_mecab as japanese
    import sacrebleu.tokenizers.tokenizer_ko_mecab as korean

    for module in (japanese, korean):
        monkeypatch.setattr(module, "MeCab", None)
    bleu_tokenizer.cache_clear()
    translation_metrics.sentence_metrics.cache_clear()
    yield
    bleu_tokenizer.cache_clear()
    translation_metrics.sentence_metrics.cache_clear()


def entries(*languages: str, key: bool = True) -> list[dict[str, Any]]:
    return [
        {"question_id": i, "prompt": "p", "label": [SENTENCES[language][0]]}
        | ({"target_language": language} if key else {})
        for i, language in enumerate(languages)
    ]


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("language", SENTENCES)
def test_the_reference_itself_has_the_best_scores(language: str, key: bool) -> None:
    task, [entry], text = get_task("wmt"), entries(language, key=key), SENTENCES[language][0]
    best = {"bleu": 100, "chrf": 100, "ter": 0, "rouge1": 100, "rougeL": 100}
    assert task.score(entry, text) == pytest.approx(best)
    corpus = {name: metric["score"] for name, metric in task.corpus([entry], [text], []).items()}
    assert corpus == pytest.approx({"BLEU": 100, "chrF2++": 100, "TER": 0, "ROUGE-1": 100, "ROUGE-L": 100})


def metrics_of(language: str) -> dict[str, Any]:
    asian = language in ASIAN
    bleu = BLEU(tokenize=TOKENIZERS.get(language, "13a"))
    return {"BLEU": bleu, "chrF2++": CHRF(word_order=2), "TER": TER(normalized=asian, asian_support=asian)}


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("language", SENTENCES)
def test_scores_and_signatures_are_sacrebleu_s(language: str, key: bool) -> None:
    task, (reference, other) = get_task("wmt"), SENTENCES[language]
    items, outputs = entries(*[language] * 3, key=key), [other, reference, other]
    found = task.corpus(items, outputs, [])
    for name, metric in metrics_of(language).items():
        expected = metric.corpus_score(outputs, [[reference] * 3])
        assert found[name] == {"score": expected.score, "signature": str(metric.get_signature())}
        assert 0 < expected.score < 100
    tokenizer = TOKENIZERS.get(language, "13a")
    expected = sacrebleu.sentence_bleu(other, [reference], tokenize=tokenizer, use_effective_order=True).score
    assert task.score(items[0], other)["bleu"] == expected
    ter = metrics_of(language)["TER"].sentence_score(other, [reference]).score
    assert task.score(items[0], other)["ter"] == ter


def test_the_comparison_uses_the_same_tokenizers() -> None:
    reference, other = SENTENCES["zh"]
    good, bad = [reference, other] * 8, [other, other] * 8
    found = get_task("wmt").compare(entries(*["zh"] * 16), good, bad)
    signatures, expected = PairedTest([("a", good), ("b", bad)], metrics_of("zh"), [[reference] * 16], test_type="bs")()
    for name in ("BLEU", "chrF2++", "TER"):
        target, tested = expected[name]
        assert (found[name]["target"], found[name]["other"]) == (target.score, tested.score)
        assert found[name]["p_value"] == tested.p_value
        assert found[name]["signature"] == str(signatures[name])


def test_a_file_of_several_languages_is_scored_together_and_by_language() -> None:
    task, languages = get_task("wmt"), ("zh", "de", "zh", "de")
    items = entries(*languages)
    outputs = [SENTENCES[language][1] for language in languages]
    found = task.corpus(items, outputs, [])
    assert {name for name in found if "BLEU" in name} == {"BLEU", "BLEU (de)", "BLEU (zh)"}
    for language in ("zh", "de"):
        alone = task.corpus(entries(language, language), [SENTENCES[language][1]] * 2, [])
        assert {name: found[f"{name} ({language})"] for name in alone} == alone
    tokens = [BLEU(tokenize=TOKENIZERS.get(language, "13a")).tokenizer for language in languages]
    pairs = [tuple(map(tokens[i], SENTENCES[language])) for i, language in enumerate(languages)]
    together = BLEU(tokenize="none", force=True).corpus_score([b for _, b in pairs], [[a for a, _ in pairs]]).score
    assert found["BLEU"]["score"] == together
    assert "tok:13a+zh" in found["BLEU"]["signature"]
    assert "norm:zh|punct:yes|asian:zh" in found["TER"]["signature"]
    compared = task.compare(items, outputs, outputs)
    assert set(compared) == {name for name in found if "ROUGE" not in name}
    assert compared["BLEU (zh)"]["target"] == found["BLEU (zh)"]["score"]
    assert "tok:13a+zh" in compared["BLEU"]["signature"]


def test_dictionaries_are_used_if_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dictionary:  # of MeCab, with the interface that sacrebleu needs
        size, next = 392126, None

    class Tagger:
        def __init__(self, arguments: str) -> None:
            pass

        def dictionary_info(self) -> Any:
            return Dictionary

        def version(self) -> str:
            return "0.996"

        def parse(self, line: str) -> str:
            return " ".join(line[i : i + 2] for i in range(0, len(line), 2)) + "\n"

    import sacrebleu.tokenizers.tokenizer_ja_mecab as japanese

    class MeCab:
        pass

    MeCab.Tagger = Tagger  # type: ignore[attr-defined]
    monkeypatch.setattr(japanese, "MeCab", MeCab)
    monkeypatch.setattr(japanese, "ipadic", type("ipadic", (), {"MECAB_ARGS": ""}), raising=False)
    found = get_task("wmt").corpus(entries("ja"), [SENTENCES["ja"][1]], [])["BLEU"]
    assert "tok:ja-mecab-0.996-IPA" in found["signature"]
    assert found["score"] == BLEU(tokenize="ja-mecab").corpus_score([SENTENCES["ja"][1]], [[SENTENCES["ja"][0]]]).score


@pytest.mark.parametrize(
    ("reference", "output", "rouge1", "rouge_l"),
    [
        ("Er ist schön.", "Er ist schaun.", 2 / 3, 2 / 3),
        ("Кошка сидит дома", "дома сидит кот", 2 / 3, 1 / 3),
        ("我喜欢喝茶。", "我爱喝茶。", 2 * 3 / (5 + 4), 2 * 3 / (5 + 4)),
        ("猫が座る", "犬が座る", 3 / 4, 3 / 4),
        ("बिल्ली बैठी है", "बिल्ली बैठा है", 2 / 3, 2 / 3),
        ("แมว", "แม่", 1 / 2.5, 1 / 2.5),  # แ ม ว; แ ม่: 1 of 3 and 1 of 2
        ("고양이가 집에 있다", "개가 집에 있다", 2 / 3, 2 / 3),
        ("cafe\u0301 noir", "CAFÉ NOIR", 1, 1),  # the accent as a character of its own
        ("iPhone 15发布", "iPhone 15 上市", 2 / 4, 2 / 4),
        ("ｋｍ", "km", 1, 1),
    ],
)
def test_rouge_by_hand(reference: str, output: str, rouge1: float, rouge_l: float) -> None:
    score = get_task("wmt").score({"question_id": 1, "prompt": "p", "label": reference}, output)
    assert (score["rouge1"], score["rougeL"]) == (pytest.approx(100 * rouge1), pytest.approx(100 * rouge_l))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("コーヒー、々〇", list("コーヒー々〇")),
        ("naïve résumé", ["naïve", "résumé"]),
        ("3.5万人", ["3", "5", "万", "人"]),
        ("Zu\xadsatz", ["zusatz"]),
    ],
)
def test_tokens_of_rouge(text: str, tokens: list[str]) -> None:
    assert UnicodeTokenizer().tokenize(text) == tokens


def test_tokens_of_ascii_text_are_those_of_rouge_score() -> None:
    text = "Don't_stop: it's 57,500.5 $ (or 3-4)!  A.B."
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer().tokenize(text)
