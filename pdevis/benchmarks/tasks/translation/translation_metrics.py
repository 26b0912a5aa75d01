"""BLEU, chrF++ and TER by sacrebleu, and ROUGE, each with the tokenizer of the language that is translated into.

BLEU: as sacrebleu chooses, `zh` for Chinese, `ja-mecab` and `ko-mecab` for Japanese and Korean if they are installed
(pip install sacrebleu[ja,ko]), otherwise `char`; also `char` for languages that are written without spaces (Thai, Lao,
Khmer, Burmese, Tibetan); `13a` for all others. TER: sacrebleu's normalisation and Asian support for Chinese and
Japanese. chrF++ has no tokenizer. ROUGE: words of any script; scripts without spaces are divided into characters.

Segments are tokenized here, and the metrics get tokens: so one corpus may have several languages. Signatures name what
was used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import regex

from pdevis.util.files import home_for_libraries

METRICS = ("BLEU", "chrF2++", "TER")
ROUGE = {"ROUGE-1": "rouge1", "ROUGE-L": "rougeL"}

_BLEU_TOKENIZERS = {  # of sacrebleu, the first that is installed
    "zh": ("zh",),
    "ja": ("ja-mecab", "char"),
    "ko": ("ko-mecab", "char"),
    **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz"), ("char",)),
}
_ASIAN = ("zh", "ja")  # languages whose characters TER's Asian support divides

_NO_SPACES = (
    r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)
_JOINER = r"(?<=[\p{L}\p{M}])[\u200c\u200d](?=\p{L})"  # inside a word, as in Persian and Hindi
_ROUGE_TOKEN = regex.compile(
    rf"(?V1)[[{_NO_SPACES}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"  # a character with its combining marks
    rf"|(?:[[\p{{L}}\p{{M}}\p{{N}}]--[{_NO_SPACES}]]|{_JOINER})+"  # a word
)


class UnicodeTokenizer:
    """Tokenizer for rouge_score. On ASCII text its tokens are those of rouge_score's own tokenizer."""

    signature = "tokenizer:unicode"

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words and, of scripts without spaces, characters."""
        return _ROUGE_TOKEN.findall(unicodedata.normalize("NFKC", text).replace("\xad", "").lower())


@cache
def rouge_scorer() -> Any:
    with home_for_libraries():
        from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE.values()), tokenizer=UnicodeTokenizer())


def rouge(output: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1 and ROUGE-L, from 0 to 100: of the reference that is nearest."""
    overlap = rouge_scorer().score_multi(references, output)
    return {name: 100 * overlap[name].fmeasure for name in ROUGE.values()}


def rouge_signature() -> str:
    return f"f-measure|mean|stemmer:no|{UnicodeTokenizer.signature}|version:rouge-score {version('rouge-score')}"


@cache
def bleu_tokenizer(language: str) -> tuple[str, Callable[[str], str]]:
    """sacrebleu's tokenizer of a language, and its name in signatures."""
    from sacrebleu.metrics import BLEU

    first, *others = _BLEU_TOKENIZERS.get(language, ("13a",))
    try:
        metric = BLEU(tokenize=first)
    except RuntimeError:  # its dictionary is not installed
        metric = BLEU(tokenize=others[0])
    return metric.tokenizer_signature, metric.tokenizer


@cache
def ter_tokenizer(asian: bool) -> Callable[[str], str]:
    from sacrebleu.metrics import TER

    return TER(normalized=asian, asian_support=asian).tokenizer


def tokenize(metric: str, text: str, language: str) -> str:
    """The tokens of a text, separated by spaces, as a metric of `METRICS` counts them."""
    if metric == "chrF2++":
        return text
    return bleu_tokenizer(language)[1](text) if metric == "BLEU" else ter_tokenizer(language in _ASIAN)(text)


def make_metric(metric: str, languages: Sequence[str], *, sentence: bool = False) -> Any:
    """A metric of sacrebleu that takes tokenized text. Its signature contains the references that it saw last.

    Args:
        languages: of the texts.
        sentence: BLEU leaves out orders of n-grams that a short text does not have.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    if metric == "BLEU":
        bleu = BLEU(tokenize="none", force=True, effective_order=sentence)
        bleu.tokenizer_signature = "+".join(sorted({bleu_tokenizer(language)[0] for language in languages}))
        return bleu
    if metric == "TER":
        asian = all(language in _ASIAN for language in languages)
        ter = TER(normalized=asian, asian_support=asian)
        ter.tokenizer = _unchanged
        return ter
    return CHRF(word_order=2)


def sign(signature: Any, languages: Sequence[str]) -> str:
    """Text of a signature of sacrebleu. In TER's, norm and asian name their languages if the texts have others too."""
    asian = sorted(set(languages) & set(_ASIAN))
    if "asian" in signature.info and asian and set(languages) - set(_ASIAN):
        signature.update("norm", "+".join(asian))
        signature.update("asian", "+".join(asian))
    return str(signature)


@cache
def sentence_metrics(language: str) -> dict[str, Any]:
    """The metrics of single translations into a language."""
    return {metric: make_metric(metric, [language], sentence=True) for metric in METRICS}


def _unchanged(text: str) -> str:
    return text
