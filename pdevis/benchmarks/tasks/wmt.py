"""WMT: machine translation, scored with sacrebleu (BLEU, chrF++, TER) and ROUGE.

All scores are 0 to 100; of TER less is better. Each output counts as one line: runs of white space become one space,
as in the line-per-segment files that the metrics were made for.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdevis.benchmarks.tasks.items import Item, load_items, text, texts

SIGNIFICANT = 0.05


def one_line(output: str) -> str:
    return " ".join(output.split())


def source(item: Item) -> str:
    """The prompt: in the data a text, or a list of one."""
    prompt = item["prompt"]
    return prompt if isinstance(prompt, str) else prompt[0]


def references(item: Item) -> list[str]:
    """The reference translations: in the data a text, or a list of them."""
    label = item["label"]
    return [one_line(each) for each in ([label] if isinstance(label, str) else label)]


@cache
def sentence_metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF, TER

    return {"bleu": BLEU(effective_order=True), "chrf": CHRF(word_order=2), "ter": TER()}


def corpus_metrics() -> dict[str, Any]:
    """New ones each time: they remember the number of references they saw last, which their signature names."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    return {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()}


@cache
def rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def streams(entries: list[Item]) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of every entry, the second of every entry (None: has none), …"""
    labels = [references(entry) for entry in entries]
    most = max(map(len, labels))
    return [[label[i] if i < len(label) else None for label in labels] for i in range(most)]


class Wmt:
    name = "wmt"
    metrics = ("bleu", "chrf", "ter", "rouge1", "rougeL")
    lower_is_better = ("ter",)
    groups: tuple[str, ...] = ()

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        for key in ("prompt", "label"):
            (texts if isinstance(item.get(key), list) else text)(item, key)
        if isinstance(item["prompt"], list) and len(item["prompt"]) != 1:
            raise ValueError(f"prompt holds {len(item['prompt'])} texts: must be a string, or a list of one")

    def prompts(self, item: Item) -> list[str]:
        return [source(item)]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label")}

    def score(self, entry: Item, text: str) -> dict[str, Any]:
        """Sentence-level scores. They are for looking at single answers: corpus scores are not their means."""
        output, labels = one_line(text), references(entry)
        scores = {name: metric.sentence_score(output, labels).score for name, metric in sentence_metrics().items()}
        overlap = rouge().score_multi(labels, output)
        return scores | {name: 100 * overlap[name].fmeasure for name in ("rouge1", "rougeL")}

    def corpus(self, entries: list[Item], texts: list[str]) -> dict[str, Any]:
        if not entries:
            return {}
        outputs, labels = [one_line(each) for each in texts], streams(entries)
        found: dict[str, Any] = {}
        for name, metric in corpus_metrics().items():
            score = metric.corpus_score(outputs, labels).score
            found[name] = {"score": score, "signature": str(metric.get_signature())}
        each = [rouge().score_multi(references(entry), output) for entry, output in zip(entries, outputs)]
        signature = f"f-measure|mean|stemmer:no|version:rouge-score {version('rouge-score')}"
        for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-L", "rougeL")):
            mean = 100 * sum(scores[key].fmeasure for scores in each) / len(each)
            found[name] = {"score": mean, "signature": signature}
        return found

    def compare(self, entries: list[Item], target_texts: list[str], other_texts: list[str]) -> dict[str, Any]:
        """sacrebleu's paired bootstrap test of `other` against `target`.

        Its p-value counts resamples that differ by more than the scores do; where the scores do not differ at all that
        count is 0 and it would call them significantly different, so equal scores get a p-value of 1.
        """
        if not entries:
            return {}
        from sacrebleu.significance import PairedTest

        systems = [
            (name, [one_line(each) for each in outputs])
            for name, outputs in (("target", target_texts), ("other", other_texts))
        ]
        signatures, results = PairedTest(systems, corpus_metrics(), streams(entries), test_type="bs")()
        found = {}
        for name, signature in signatures.items():
            target, other = results[name]
            p = 1.0 if other.score == target.score else float(other.p_value)
            found[name] = {
                "target": float(target.score),
                "other": float(other.score),
                "difference": float(other.score - target.score),
                "p_value": p,
                "significant": p < SIGNIFICANT,
                "target_interval": _interval(target),
                "other_interval": _interval(other),
                "signature": str(signature),
            }
        return found


def _interval(result: Any) -> list[float]:
    """The 95 % bootstrap interval around the resamples' mean."""
    return [float(result.mean - result.ci), float(result.mean + result.ci)]
