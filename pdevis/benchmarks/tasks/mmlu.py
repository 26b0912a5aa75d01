"""MMLU: multiple choice with four options, scored by the option that an answer names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import regex

from pdevis.benchmarks.tasks.items import Item, load_items, one_of, text
from pdevis.benchmarks.tasks.task import Scores, Task
from pdevis.reasoning.split_reasoning import split_reasoning

OPTIONS = ("A", "B", "C", "D")

# What precedes and follows the letter of an option. Scripts without spaces may touch it: 答案是B, Bです.
_LETTER = r"\p{Latin}\p{Cyrillic}\p{Greek}\d"
_BEFORE = rf"(?<![{_LETTER}'’.°]|[{_LETTER}]/)"
_AFTER = rf"(?![{_LETTER}'’+#]|-\w|\.\w\.)"
_OPEN, _CLOSE = r"[(\[{<]{0,3}\s{0,3}", r"\s{0,3}[)\]}>]{0,3}"  # limited: a longer run would take quadratic time
_NAMED = (  # a word for the option itself
    r"(?i:the\s+)?(?i:option|choice|answer|letter|buchstabe|opci[oó]n|op[çc][ãa]o|opzione|alternativa|lettre|letra|lettera|"
    r"вариант|буква|选项|選項)"
)
_WORDS = (  # before a stated option
    r"(?<![\p{L}])(?i:answer|ans|option|choice|solution|correct(?:\s+one)?|antwort|lösung|respuesta|opci[oó]n|réponse|"
    r"risposta|resposta|alternativa|antwoord|svar(?:et)?|odpowiedź|odpověď|cevap|yanıt|jawaban(?:nya)?|jibu|đáp\s+án|ответ|"
    r"вариант|відповідь|απάντηση)(?![\p{L}])|答案|答え|解答|正解|选项|選項|정답|답|คำตอบ|الإجابة|الجواب|תשובה|उत्तर|উত্তর|సమాధానం"
)
_IS = (  # between such a word and the option
    r"(?:\s*(?:(?<![\p{L}])(?i:is|are|was|(?:would|should|must|will|has\s+to|seems\s+to|appears\s+to)\s+be|ist|lautet|wäre|"
    r"es|sería|est|serait|è|é|är|er|jest|je|là|adalah|ni)(?![\p{L}])|[:=]|->|→|[-–—](?=\s)|是|为|為|は|が|은|는|이|가|คือ|هي|هو|"
    r"है|হল|হলো))+"
)
_ADJECTIVES = r"(?:\s+(?i:correct|right|final|most\s+likely|probably|likely|clearly|therefore|simply|indeed|actually))*"

_WHOLE = regex.compile(rf"\W*(?:{_NAMED}\W+)?([A-Da-dАВСΑΒ])\W*")
_QUOTED_REPLY = regex.compile(
    rf"A\s*:\s*(?={_OPEN}[A-D]{_AFTER}{_CLOSE}(?:[.,;]|\s|$)|I\s+(?i:do|can|am)|I['’])"
)  # as in "Q: … A: C"
_LEADING = regex.compile(
    rf"{_OPEN}(?:([A-D]){_CLOSE}{_AFTER}(?:\s*(?:[.,:;)!…]|=)|\s*[-–—](?!\w)|\s*\n|\s*$)|([a-d])\s*[.):](?=\s|$))"
    rf"|(?:{_NAMED})\s*:?\s*{_OPEN}([A-D]){_AFTER}"
)
_STATED = regex.compile(
    rf"(?:{_WORDS}){_CLOSE}{_IS}{_ADJECTIVES}\s*(?:{_NAMED}\s*:?\s*)?{_OPEN}(?:([A-DАВСΑΒ]){_AFTER}|([b-d])(?![\w'’-])|"
    rf"(a)(?={_CLOSE}[.,;]?\s*(?:\n|$)))"
    r"|(?:应选|應選|故选|故選|选择|選擇|选|選)\s*([A-D])(?!\w)|<(?i:answer)>\s*([A-Da-d])\s*<"
)
_CORRECT = regex.compile(
    rf"{_BEFORE}([A-D]){_AFTER}{_CLOSE}\s+(?i:is|seems|looks|appears|would\s+be|must\s+be)(?:\s+(?i:indeed|clearly|therefore|to\s+be))*"
    r"\s+(?:(?i:the|a)\s+)?(?:(?i:only|most|best|single|more)\s+)*(?i:correct|right|best|answer|true|appropriate|accurate|likely|valid)\b"
)
_ALONE = regex.compile(rf"{_BEFORE}([A-D]){_AFTER}")
_BOXED = regex.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}?")
_COMMAND = regex.compile(
    r"\\(?:boxed|fbox|text\w*|math\w*|mathrm|mbox|bf|rm|displaystyle|left|right)\b\s*\{?|\\[()\[\]]|\\[,;! ]"
)

_LIST = regex.compile(  # several options in one breath
    rf"{_BEFORE}{_OPEN}[A-D]{_AFTER}{_CLOSE}(?:\s*,\s*{_OPEN}[A-D]{_AFTER}{_CLOSE})*"
    rf"(?:\s*,?\s*(?:(?<![\p{{L}}])(?i:and|or|und|oder|y|o|et|ou|e|и|или|as\s+well\s+as)(?![\p{{L}}])|[/&]|和|或|与|と|및)\s*"
    rf"(?:(?i:option|choice)\s+)?{_OPEN}[A-D]{_AFTER}{_CLOSE}|(?:\s*[,、]\s*{_OPEN}[A-D]{_AFTER}{_CLOSE})+(?=\s*(?:[.!?]|\n|$)))"
)
_OPTION_LINE = regex.compile(r"^\s*(?:[-•]\s+)?\(?([A-D])[.):](?=\s).*$", regex.M)
_MARKED = regex.compile(r"[✓✔✅☑]|<-|←|(?<!in)(?<!not )\b(?i:correct)\b")
_RETRACTED = regex.compile(
    r"\b(?i:wait(?=\s*[,.!:…–—-])|hold\s+on|on\s+second\s+thoughts?|scratch\s+that|correction|i\s+was\s+wrong|my\s+mistake|"
    r"let\s+me\s+(?:re\w+|double))\b"
)
_NEGATED = regex.compile(  # the end of what stands before an option
    r"(?:\b(?i:not|cannot\s+be|nor|neither|never|except|rather\s+than|instead\s+of|unlike|rules?\s+out|ruled\s+out|eliminat\w+|"
    r"exclud\w+|reject\w*|incorrect|wrong|nicht|kein\w*|no\s+es|pas|не)|n['’]t(?:\s+be)?|不是|不选)"
    rf"\s*(?:{_NAMED}|(?i:answer|option|choice)s?)?\s*(?:(?i:is|are)|:)?\s*[(\[{{<]*$"
)
_REFUTED = regex.compile(  # the beginning of what follows an option
    r"[)\]}>]*(?:\s*(?:ではな|不对|不正确|不對)|\s+(?i:is|are|was|ist|es|est)\s+(?:(?i:also|clearly|therefore|simply|a\s+common|an?|the)\s+)*"
    r"(?i:not|wrong|incorrect|false|out|nicht|falsch|incorrect[ao]|faux|fausse|distractor)\b|"
    r"\s+(?i:can|could|does|is|was|would)\s*(?i:not\b|n['’]t)|\s+(?i:cannot)\b)"
)
_ASKED = regex.compile(rf"{_CLOSE}\s*\?")
_NOUN = regex.compile(  # words whose names are letters
    r"\b(?i:vitamin|hepatitis|influenza|type|class|group|grade|plan|statement|figure|table|section|part|appendix|factor|"
    r"schedule|point|company|person|country|event|set|case|team|protein|blood|model|phase|stage|step|item|box)s?\s+$"
)
_AFTER_A = regex.compile(  # what follows the option A and no article
    rf"{_CLOSE}(?:\s+(?i:is|was|are|because|since|as|would|seems|must|should|could|can|will|may|might|has|does|for|here|only|alone|given|"
    r"due|based|over|in|on|by|if|when|which|that|this|it|states|says|describes|gives|weil|da|denn|porque|ya|car|parce|"
    r"perché|потому|–|—|-)(?![\p{L}])|\s*[^\s\w]|\s*$|\s*\n|[^\s\p{Latin}\p{Cyrillic}\p{Greek}])"
)
_CAPITAL = regex.compile(r"\s+[\p{Lu}\d]")
_LOOKALIKES = str.maketrans("АВСΑΒ", "ABCAB")  # Cyrillic and Greek
_MARKUP = regex.compile(r"[*`${}\"“”„«»「」『』【】\u200b\ufeff]|(?<!\w)_+|_+(?!\w)|^\s*(?:#+|>)\s+", regex.M)


def format_question(question: str, choices: list[str]) -> str:
    """Prompt of one question with its four choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(OPTIONS, choices, strict=True)]
    return "\n".join(
        [
            "Choose the right option and reply with its letter only: A, B, C or D.",
            "",
            question,
            "",
            *lines,
            "",
            "Answer:",
        ]
    )


def extract_option(text: str) -> str | None:
    """The option that a text of a model names as its answer; None if it names none, or several at once.

    In this order: the whole answer; a boxed option; one stated after a retraction; one at the very beginning
    ("C. True, False"); one that is stated ("the answer is C", "C is correct"); the first letter that is a word of its
    own and not the article A. An option that the answer rejects ("not B", "B is wrong") does not count.
    """
    answer = unicodedata.normalize("NFKC", split_reasoning(text).answer)
    boxes = [_plain(box) for box in _BOXED.findall(answer)]
    answer = _plain(answer)
    if whole := _WHOLE.fullmatch(answer):
        return _letter(whole)
    for box in reversed(boxes):
        if found := _WHOLE.fullmatch(box) or _LEADING.match(box):
            return _letter(found)
    answer = _QUOTED_REPLY.sub("", answer, count=1) if _QUOTED_REPLY.match(answer) else answer
    retracted = list(_RETRACTED.finditer(answer))
    if retracted and (option := _stated(answer, start=retracted[-1].end())):
        return option
    answer = _without_repeated_options(answer)
    for asked in (False, True):  # "A? No, C": a question counts only if nothing else is named
        if leading := _leading(answer, asked=asked):
            return leading
        options = _LIST.sub(" ", answer)
        if option := _stated(options, asked=asked) or _first(_ALONE, options, asked=asked):
            return option
    return None


def _plain(text: str) -> str:
    """The text without the markup of markdown and LaTeX, quotation marks, and runs of white space."""
    return _single_spaces(_MARKUP.sub("", _COMMAND.sub("", _single_spaces(text)))).strip()


def _single_spaces(text: str) -> str:
    return regex.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text)


def _group(match: regex.Match[str]) -> int:
    """Number of the group that holds the letter."""
    return next(number for number, found in enumerate(match.groups(), 1) if found)


def _letter(match: regex.Match[str]) -> str:
    return match[_group(match)].translate(_LOOKALIKES).upper()


def _leading(answer: str, *, asked: bool) -> str | None:
    match = _LEADING.match(answer)
    if match is None or _LIST.match(answer, match.start(_group(match))) or _is_rejected(answer, match, asked=asked):
        return None
    if match[3] and _is_article(answer, match, group=3):
        return None
    return _letter(match)


def _stated(answer: str, *, start: int = 0, asked: bool = False) -> str | None:
    found = [
        (position, option)
        for pattern in (_STATED, _CORRECT)
        for position, option in _options(pattern, answer, start=start, asked=asked)
    ]
    return min(found)[1] if found else None


def _first(pattern: regex.Pattern[str], answer: str, *, asked: bool) -> str | None:
    return next((option for _, option in _options(pattern, answer, asked=asked)), None)


def _options(pattern: regex.Pattern[str], answer: str, *, start: int = 0, asked: bool) -> Iterator[tuple[int, str]]:
    """Positions and letters of the options that match and that the answer does not reject."""
    for match in pattern.finditer(answer, start):
        group = _group(match)
        if pattern is not _CORRECT and _is_article(answer, match, group=group):
            continue
        if not _is_rejected(answer, match, asked=asked):
            yield match.start(), _letter(match)


def _is_article(answer: str, match: regex.Match[str], *, group: int) -> bool:
    """True if a letter A is the beginning of a phrase. After "Answer:" a capitalised phrase is the option's text."""
    end = match.end(group)
    is_option = _AFTER_A.match(answer, end) or (match.re is not _ALONE and _CAPITAL.match(answer, end))
    return match[group] == "A" and not is_option


def _is_rejected(answer: str, match: regex.Match[str], *, asked: bool) -> bool:
    """True if the answer says that an option is wrong, asks whether it is right, or if the letter names no option."""
    group = _group(match)
    before, end = answer[max(0, match.start() - 40) : match.start()], match.end(group)
    is_asked = _ASKED.match(answer, end) is not None
    is_noun = match.re is _ALONE and _NOUN.search(before) is not None
    return bool(_NEGATED.search(before) or _REFUTED.match(answer, end) or is_noun or (is_asked and not asked))


def _without_repeated_options(answer: str) -> str:
    """The answer without a list of all options, unless one line of it is marked as correct: then that line's letter."""
    lines = list(_OPTION_LINE.finditer(answer))
    if "".join(line[1] for line in lines[:3]) != "ABC":
        return answer
    marked = [line[1] for line in lines if _MARKED.search(line[0])]
    rest = _OPTION_LINE.sub("", answer).strip()
    return rest if len(marked) != 1 or _stated(rest) else marked[0]


class Mmlu(Task):
    name = "mmlu"
    gen_len = 16
    metrics = ("correct",)
    groups = ("subject",)
    own_keys = groups

    def load(self, path: Path, k: int | None = None) -> list[Item]:
        return load_items(path, self._check, k)

    @staticmethod
    def _check(item: Item) -> None:
        text(item, "prompt")
        text(item, "subject")
        one_of(item, "label", OPTIONS)

    def prompts(self, item: Item) -> list[str]:
        return [item["prompt"]]

    def entry(self, item: Item) -> Item:
        return {key: item[key] for key in ("question_id", "prompt", "label", "subject")}

    def score_answer(self, entry: Item, answer: str) -> Scores:
        option = extract_option(answer)
        return {"correct": int(option == entry["label"]), "extracted": option}

    def corpus(self, entries: Sequence[Item], texts: Sequence[str], scores: Sequence[Scores]) -> dict[str, Any]:
        """Accuracy over all questions (micro) and its mean over subjects (macro)."""
        if not entries:
            return {}
        subjects: dict[str, list[int]] = {}
        for entry, score in zip(entries, scores):
            subjects.setdefault(entry["subject"], []).append(score["correct"])
        accuracies = [sum(correct) / len(correct) for correct in subjects.values()]
        micro = sum(score["correct"] for score in scores) / len(scores)
        signature = f"first-option|questions:{len(scores)}|subjects:{len(accuracies)}"
        return {
            "accuracy_micro": {"score": micro, "signature": signature},
            "accuracy_macro": {"score": sum(accuracies) / len(accuracies), "signature": signature},
        }
