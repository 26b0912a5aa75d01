"""WMT's scorers against sacrebleu's and rouge-score's own functions, and the significance test."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from helpers.evaluation import score_corpus
from pdevis.benchmarks.tasks import get_task

REFERENCE = "The municipality plans to build three new cycle paths by spring."
ANSWERS = [  # from right to wrong; every one scores less than the one before it
    REFERENCE,
    "The municipality plans to build three cycle paths by spring.",
    "The municipality wants to build three new bike lanes by spring.",
    "Three new cycle paths, the town says.",
    "Spring is the best time of the year for a walk in the park.",
]
OTHERS = [
    "",
    "…",
    "The municipality",
    "Die Gemeinde will drei neue Radwege bauen.",
    f"{REFERENCE} {REFERENCE}",
    REFERENCE.upper(),
]


def entry(label: object = (REFERENCE,), question: int = 1) -> dict:
    label = list(label) if isinstance(label, tuple) else label
    return {"question_id": question, "prompt": ["Translate German to English: …"], "label": label}


@pytest.mark.parametrize("answer", ANSWERS + OTHERS)
def test_sentence_scores_are_the_libraries(answer: str) -> None:
    score = get_task("wmt").score(entry(), answer)
    assert score["bleu"] == sacrebleu.sentence_bleu(answer, [REFERENCE], use_effective_order=True).score
    assert score["chrf"] == sacrebleu.sentence_chrf(answer, [REFERENCE], word_order=2).score
    assert score["ter"] == sacrebleu.sentence_ter(answer, [REFERENCE]).score
    rouge = RougeScorer(["rouge1", "rougeL"]).score(REFERENCE, answer)
    assert score["rouge1"] == pytest.approx(100 * rouge["rouge1"].fmeasure)
    assert score["rougeL"] == pytest.approx(100 * rouge["rougeL"].fmeasure)


def test_better_answers_score_better() -> None:
    scores = [get_task("wmt").score(entry(), answer) for answer in ANSWERS]
    best = {"bleu": pytest.approx(100), "chrf": 100, "ter": 0, "rouge1": 100, "rougeL": 100}
    assert scores[0] == best
    chrf, ter = [score["chrf"] for score in scores], [score["ter"] for score in scores]
    assert chrf == sorted(chrf, reverse=True)
    assert ter == sorted(ter)
    assert all(score["bleu"] < 80 for score in scores[1:])
    empty = get_task("wmt").score(entry(), "")
    assert (empty["bleu"], empty["chrf"], empty["rouge1"], empty["ter"]) == (0, 0, 0, 100)


def test_white_space_and_form_of_the_label_do_not_matter() -> None:
    task = get_task("wmt")
    spread = " \n" + REFERENCE.replace(" ", "\n  ") + "\n\n"
    assert task.score(entry(REFERENCE), spread) == task.score(entry([REFERENCE]), REFERENCE)
    assert task.prompts(entry()) == task.prompts(entry() | {"prompt": "Translate German to English: …"})


def test_several_references_count_each() -> None:
    task = get_task("wmt")
    two = entry([ANSWERS[2], REFERENCE])
    assert task.score(two, REFERENCE)["bleu"] == pytest.approx(100)
    assert task.score(two, REFERENCE)["rouge1"] == 100
    entries = [two, entry(question=2)]
    assert score_corpus(task, entries, [ANSWERS[2], REFERENCE])["BLEU"]["score"] == pytest.approx(100)
    assert "nrefs:var" in score_corpus(task, entries, [ANSWERS[2], REFERENCE])["BLEU"]["signature"]


def test_corpus_scores_and_signatures_are_sacrebleu_s() -> None:
    entries = [entry(question=i) for i in range(len(ANSWERS))]
    results = score_corpus(get_task("wmt"), entries, ANSWERS)
    references = [[REFERENCE] * len(ANSWERS)]
    for name, metric in {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()}.items():
        assert results[name]["score"] == metric.corpus_score(ANSWERS, references).score
        assert results[name]["signature"] == str(metric.get_signature())
    assert "version:" in results["BLEU"]["signature"]
    mean = sum(get_task("wmt").score(entry(), answer)["rougeL"] for answer in ANSWERS) / len(ANSWERS)
    assert results["ROUGE-L"]["score"] == pytest.approx(mean)
    assert get_task("wmt").corpus([], [], []) == {}


def test_equal_answers_are_not_significantly_different() -> None:
    """sacrebleu's own p-value for them is 1 / 1001, since no resample differs by more than they do."""
    entries = [entry(question=i) for i in range(len(ANSWERS))]
    results = get_task("wmt").compare(entries, ANSWERS, list(ANSWERS))
    assert set(results) == {"BLEU", "chrF2++", "TER"}
    for result in results.values():
        assert result["difference"] == 0
        assert result["p_value"] == 1
        assert not result["significant"]
    spaced = [answer.replace(" ", "  ") for answer in ANSWERS]
    assert get_task("wmt").compare(entries, ANSWERS, spaced)["BLEU"]["p_value"] == 1


def test_worse_answers_are_significantly_worse_as_sacrebleu_says() -> None:
    entries = [entry(question=i) for i in range(20)]
    good, bad = [REFERENCE, ANSWERS[1]] * 10, [ANSWERS[3], ANSWERS[2]] * 10
    results = get_task("wmt").compare(entries, good, bad)
    metrics = {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()}
    signatures, expected = PairedTest([("a", good), ("b", bad)], metrics, [[REFERENCE] * 20], test_type="bs")()
    for name, (target, other) in ((name, expected[name]) for name in metrics):
        assert results[name]["target"] == target.score
        assert results[name]["other"] == other.score
        assert results[name]["p_value"] == other.p_value < 0.05
        assert results[name]["significant"]
        assert results[name]["signature"] == str(signatures[name])
        low, high = results[name]["other_interval"]
        assert low <= other.mean <= high
    assert results["BLEU"]["difference"] < 0 < results["TER"]["difference"]
    assert get_task("wmt").compare([], [], []) == {}


def test_one_changed_word_is_not_significant() -> None:
    entries = [entry(question=i) for i in range(20)]
    changed = [REFERENCE] * 10 + ANSWERS[1:2] * 10
    other = list(changed)
    other[3], other[12] = ANSWERS[1], REFERENCE
    assert not any(result["significant"] for result in get_task("wmt").compare(entries, changed, other).values())
