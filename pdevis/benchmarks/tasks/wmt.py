"""WMT: machine translation, scored with sacrebleu (BLEU, chrF++, TER) and ROUGE, tokenized for the target language.

All scores are from 0 to 100; for TER lower is better. Each output counts as one line: runs of white space become one
space, as in the line-per-segment files that the metrics were made for.

An item may name the language that it is translated into; that of others is detected by the script of the references.
Scores of a file with several languages are those of all segments, each tokenized for its own language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, text, texts
from pdevis.benchmarks.tasks.task import Scores, Task
from pdevis.benchmarks.tasks.translation.target_language import KEY, parse_language, target_language, target_languages
from pdevis.benchmarks.tasks.translation.translation_metrics import (
    METRICS,
    ROUGE,
    make_metric,
    rouge,
    rouge_signature,
    sentence_metrics,
    sign,
    tokenize,
)
from pdevis.reasoning.split_reasoning import split_reasoning

SIGNIFICANT = 0.05  # p-values below it
SENTENCE_SCORES = {"BLEU": "bleu", "chrF2++": "chrf", "TER": "ter"}


def one_line(text: str) -> str:
    return " ".join(text.split())


def translation(text: str) -> str:
    """The answer in a text of a model, as one line."""
    return one_line(split_reasoning(text).answer)


def source(item: Item) -> str:
    """The prompt, which is a string or a list of one in the data."""
    prompt = item["prompt"]
    return prompt if isinstance(prompt, str) else prompt[0]


def references(item: Item) -> list[str]:
    """The reference translations, which are a string or a list in the data."""
    label = item["label"]
    return [one_line(reference) for reference in ([label] if isinstance(label, str) else label)]


@dataclass(frozen=True)
class Part:
    """Items that have corpus scores of their own: all of them, or those of one language if there are several.

    Attributes:
        ending: of the names of the scores.
        items: indices.
        references: of each item.
        languages: of each item.
    """

    ending: str
    items: list[int]
    references: list[list[str]]
    languages: list[str]

    def tokens(self, metric: str, texts: Sequence[str]) -> list[str]:
        """The translations of these items in the texts of all, tokenized for a metric."""
        outputs = [translation(texts[i]) for i in self.items]
        return [tokenize(metric, output, language) for output, language in zip(outputs, self.languages)]

    def reference_streams(self, metric: str) -> list[list[str | None]]:
        """References in sacrebleu's form: the first of every item, the second of every item (None: has none), …"""
        labels = [
            [tokenize(metric, label, language) for label in labels]
            for labels, language in zip(self.references, self.languages)
        ]
        count = max(map(len, labels))
        return [[label[i] if i < len(label) else None for label in labels] for i in range(count)]


def divide(entries: Sequence[Item]) -> list[Part]:
    """All items, and those of each language if there are several."""
    labels = [references(entry) for entry in entries]
    languages = target_languages(entries, labels)
    parts = {"": list(range(len(entries)))}
    if len(set(languages)) > 1:
        for i, language in sorted(enumerate(languages), key=lambda numbered: numbered[1]):
            parts.setdefault(f" ({language})", []).append(i)
    return [
        Part(ending, items, [labels[i] for i in items], [languages[i] for i in items])
        for ending, items in parts.items()
    ]


class Wmt(Task):
    name = "wmt"
    gen_len = 128
    metrics = ("bleu", "chrf", "ter", "rouge1", "rougeL")
    lower_is_better = ("ter",)

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        for key in ("prompt", "label"):
            (texts if isinstance(item.get(key), list) else text)(item, key)
        if isinstance(item["prompt"], list) and len(item["prompt"]) != 1:
            raise ValueError(f"prompt has {len(item['prompt'])} strings: must be a string, or a list of one")
        if item.get(KEY) is not None:
            parse_language(item[KEY])

    def prompts(self, item: Item) -> list[str]:
        return [source(item)]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label", KEY) if key in item}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        """Sentence-level scores, for looking at single answers: corpus scores are not their means."""
        output, labels = one_line(answer), references(entry)
        language = target_language(entry, labels)
        scores = {}
        for metric, scorer in sentence_metrics(language).items():
            tokens, *label_tokens = (tokenize(metric, text, language) for text in (output, *labels))
            scores[SENTENCE_SCORES[metric]] = scorer.sentence_score(tokens, label_tokens).score
        return scores | rouge(output, labels)

    def corpus(self, entries: Sequence[Item], texts: Sequence[str], scores: Sequence[Scores] = ()) -> dict[str, Any]:
        """Corpus scores of sacrebleu, and mean ROUGE; of several languages also those of each, as "BLEU (zh)"."""
        results: dict[str, Any] = {}
        for part in divide(entries) if entries else ():
            for name in METRICS:
                metric = make_metric(name, part.languages)
                score = metric.corpus_score(part.tokens(name, texts), part.reference_streams(name)).score
                signature = sign(metric.get_signature(), part.languages)
                results[name + part.ending] = {"score": score, "signature": signature}
            overlaps = [rouge(translation(texts[i]), labels) for i, labels in zip(part.items, part.references)]
            for name, key in ROUGE.items():
                mean = sum(overlap[key] for overlap in overlaps) / len(overlaps)
                results[name + part.ending] = {"score": mean, "signature": rouge_signature()}
        return results

    def compare(
        self, entries: Sequence[Item], target_texts: Sequence[str], other_texts: Sequence[str]
    ) -> dict[str, Any]:
        """sacrebleu's paired bootstrap test of `other` against `target`; of several languages also of each.

        Its p-value counts resamples that differ by more than the scores do. For equal scores this count is 0, which
        would make them significantly different, so equal scores get a p-value of 1.
        """
        results: dict[str, Any] = {}
        for part in divide(entries) if entries else ():
            for name in METRICS:
                results[name + part.ending] = _paired_test(name, part, target_texts, other_texts=other_texts)
        return results


def _paired_test(name: str, part: Part, target_texts: Sequence[str], *, other_texts: Sequence[str]) -> dict[str, Any]:
    from sacrebleu.significance import PairedTest

    systems = [("target", part.tokens(name, target_texts)), ("other", part.tokens(name, other_texts))]
    metrics = {name: make_metric(name, part.languages)}
    signatures, scores = PairedTest(systems, metrics, part.reference_streams(name), test_type="bs")()
    target, other = scores[name]
    p_value = 1.0 if other.score == target.score else float(other.p_value)
    return {
        "target": float(target.score),
        "other": float(other.score),
        "difference": float(other.score - target.score),
        "p_value": p_value,
        "significant": p_value < SIGNIFICANT,
        "target_interval": _interval(target),
        "other_interval": _interval(other),
        "signature": sign(signatures[name], part.languages),
    }


def _interval(result: Any) -> list[float]:
    """95 % bootstrap interval around the mean of the resamples."""
    return [float(result.mean - result.ci), float(result.mean + result.ci)]
