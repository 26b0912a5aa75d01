"""WMT: machine translation, scored with sacrebleu (BLEU, chrF++, TER) and ROUGE.

All scores are from 0 to 100; for TER lower is better. Each output counts as one line: runs of white space become one
space, as in the line-per-segment files that the metrics were made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, text, texts
from pdevis.benchmarks.tasks.task import Scores, Task
from pdevis.reasoning.split_reasoning import split_reasoning

SIGNIFICANT = 0.05  # p-values below it


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


@cache
def sentence_metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF, TER

    return {"bleu": BLEU(effective_order=True), "chrf": CHRF(word_order=2), "ter": TER()}


def corpus_metrics() -> dict[str, Any]:
    """New metric objects for each use: their signature contains the number of references that they saw last."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    return {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()}


@cache
def rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def reference_streams(entries: Sequence[Item]) -> list[list[str | None]]:
    """References in sacrebleu's form: the first of every entry, the second of every entry (None: has none), …"""
    labels = [references(entry) for entry in entries]
    count = max(map(len, labels))
    return [[label[i] if i < len(label) else None for label in labels] for i in range(count)]


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

    def prompts(self, item: Item) -> list[str]:
        return [source(item)]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label")}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        """Sentence-level scores, for looking at single answers: corpus scores are not their means."""
        output, labels = one_line(answer), references(entry)
        scores = {name: metric.sentence_score(output, labels).score for name, metric in sentence_metrics().items()}
        overlap = rouge().score_multi(labels, output)
        return scores | {name: 100 * overlap[name].fmeasure for name in ("rouge1", "rougeL")}

    def corpus(self, entries: Sequence[Item], texts: Sequence[str], scores: Sequence[Scores]) -> dict[str, Any]:
        """Corpus scores of sacrebleu, and mean ROUGE."""
        if not entries:
            return {}
        outputs, labels = [translation(text) for text in texts], reference_streams(entries)
        results: dict[str, Any] = {}
        for name, metric in corpus_metrics().items():
            score = metric.corpus_score(outputs, labels).score
            results[name] = {"score": score, "signature": str(metric.get_signature())}
        overlaps = [rouge().score_multi(references(entry), output) for entry, output in zip(entries, outputs)]
        signature = f"f-measure|mean|stemmer:no|version:rouge-score {version('rouge-score')}"
        for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-L", "rougeL")):
            mean = 100 * sum(overlap[key].fmeasure for overlap in overlaps) / len(overlaps)
            results[name] = {"score": mean, "signature": signature}
        return results

    def compare(
        self, entries: Sequence[Item], target_texts: Sequence[str], other_texts: Sequence[str]
    ) -> dict[str, Any]:
        """sacrebleu's paired bootstrap test of `other` against `target`.

        Its p-value counts resamples that differ by more than the scores do. For equal scores this count is 0, which
        would make them significantly different, so equal scores get a p-value of 1.
        """
        if not entries:
            return {}
        from sacrebleu.significance import PairedTest

        systems = [
            (name, [translation(text) for text in outputs])
            for name, outputs in (("target", target_texts), ("other", other_texts))
        ]
        signatures, scores = PairedTest(systems, corpus_metrics(), reference_streams(entries), test_type="bs")()
        results = {}
        for name, signature in signatures.items():
            target, other = scores[name]
            p_value = 1.0 if other.score == target.score else float(other.p_value)
            results[name] = {
                "target": float(target.score),
                "other": float(other.score),
                "difference": float(other.score - target.score),
                "p_value": p_value,
                "significant": p_value < SIGNIFICANT,
                "target_interval": _interval(target),
                "other_interval": _interval(other),
                "signature": str(signature),
            }
        return results


def _interval(result: Any) -> list[float]:
    """95 % bootstrap interval around the mean of the resamples."""
    return [float(result.mean - result.ci), float(result.mean + result.ci)]
