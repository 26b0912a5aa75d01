r"""Divide the text of a thinking model into its reasoning and its answer.

    split_reasoning("<think>\nTwo and two.\n</think>\n\n4")  # SplitText("Two and two.", "4", finished=True)
    split_reasoning("<think>\nTwo and")                      # SplitText("Two and", "", finished=False)

Forms that are recognised:

- tags: <think> (Qwen3, DeepSeek-R1, GLM, …), <thinking>, <thought>, <reasoning>, also with a prefix (<seed:think>);
  [THINK] (Magistral), ◁think▷ (Kimi), <|begin_of_thought|> (OpenThinker), <|START_THINKING|> (Command A),
  <|inner_prefix|> (Apertus), <|channel>thought (Gemma 4). Many chat templates write the opening tag themselves, so that
  the text has the closing one only: all that stands before it is reasoning.
- channels (gpt-oss): the answer is the channel `final`, also after a decoder has removed the special tokens between
  them ("analysis…assistantfinal…").
- the two sentences of Granite 3.2, "Here is my thought process:" and "Here is my response:". The first one alone may
  begin an answer of any model.

A tag in backticks is a mention of it. A text that ends inside a thought has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAME = r"(?:\w{1,20}[:_])?(?:think|thinking|thoughts?|reasoning)"
TAGS = (  # opening and closing tag of a thought
    (rf"<\s*(?i:{_NAME})\s*>", rf"<\s*/\s*(?i:{_NAME})\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>thought", r"<channel\|>"),
)
_OPENING = "|".join(opening for opening, _ in TAGS)
_TAG = re.compile(
    "|".join(f"(?P<open{i}>{opening})|(?P<close{i}>{closing})" for i, (opening, closing) in enumerate(TAGS))
)
_OPENING_AT_END = re.compile(rf"(?:{_OPENING})(?=\s*\Z)")
_ANY = -1  # the tag of a thought whose opening tag is not in the text, or of a closing tag that the caller names

_WRAPPERS = (  # of the answer after a thought; the closing tag is missing if the text was cut off
    re.compile(
        r"<(?i:answer|response|output|solution)>\s*(.*?)\s*(?:</(?i:answer|response|output|solution)>\s*)?", re.S
    ),
    re.compile(r"<\|begin_of_solution\|>\s*(.*?)\s*(?:<\|end_of_solution\|>\s*)?", re.S),
    re.compile(r"<\|START_RESPONSE\|>\s*(.*?)\s*(?:<\|END_RESPONSE\|>\s*)?", re.S),
)

_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.S,
)
_NAMES, _NEXT = r"(?:analysis|commentary)", r"[^\W_]|[*\"“]"  # of channels whose special tokens are gone
_BARE_CHANNEL = re.compile(rf"\s*{_NAMES}(?={_NEXT}|[\s\S]*assistantfinal)")
_BARE_FINAL = "assistantfinal"
BEGINNING = (rf"{_NAMES}(?={_NEXT})", _BARE_FINAL)  # opening and closing text of a thought that begins a text

_HERE = r"Here(?:'s|’s| is) my"
_SENTENCES = re.compile(rf"\s*{_HERE} thought process:(.*?){_HERE} response:(.*)", re.S)


@dataclass(frozen=True)
class SplitText:
    """A text of a model, divided.

    Attributes:
        reasoning: the thoughts, without tags; empty if there are none.
        answer: what follows them; empty if the last thought does not end. A text without thoughts is all answer,
            unchanged.
        finished: False if the text ends inside a thought.
    """

    reasoning: str
    answer: str
    finished: bool = True


@dataclass(frozen=True)
class _Tag:
    kind: int  # index into `TAGS`, or `_ANY`
    opens: bool
    start: int
    end: int


def split_reasoning(text: str, *, end: str | None = None) -> SplitText:
    """Divide a text into reasoning and answer.

    Args:
        text: all that the model wrote. If the prompt ended with the opening tag, that tag must come first
            (`opening_tag`): without it, a thought that does not end cannot be distinguished from an answer.
        end: a further text that ends thoughts, for models whose tag is not known here.
    """
    for split in (_split_channels(text), _split_sentences(text)):
        if split:
            return split
    return _split_tags(text, end)


def assistant_message(split: SplitText) -> dict[str, str]:
    """Return an answer as a message of a conversation, its reasoning apart: the chat template decides what to keep."""
    message = {"role": "assistant", "content": split.answer}
    return message | {"reasoning_content": split.reasoning} if split.reasoning else message


def unfinished_note(count: int, answers: int, *, limit: str = "--gen_len", switch: str = "--thinking off") -> str:
    """Sentence on answers that end inside a thought, with the remedy.

    Args:
        count: of these answers.
        answers: of all.
        limit: setting of the number of new tokens.
        switch: setting that turns thoughts off.
    """
    return (
        f"{count} of {answers} answers end inside a thought and count as no answer: give a larger {limit}, "
        f"or {switch} if the chat template can turn thoughts off"
    )


def opening_tag(prompt: str) -> str:
    """The tag with which a prompt opens the thought of the answer; empty if it opens none."""
    found = _OPENING_AT_END.search(prompt)
    return found[0] if found else ""


def _split_channels(text: str) -> SplitText | None:
    if channels := _CHANNEL.findall(text):
        parts = [body.strip() for name, body in channels if name != "final"]
        final = [body.strip() for name, body in channels if name == "final"]
        return SplitText("\n".join(parts), "\n".join(final), finished=bool(final))
    if bare := _BARE_CHANNEL.match(text):
        reasoning, final, answer = text[bare.end() :].rpartition(_BARE_FINAL)
        return SplitText(
            (reasoning if final else answer).strip(), answer.strip() if final else "", finished=bool(final)
        )
    return None


def _split_sentences(text: str) -> SplitText | None:
    if not (found := _SENTENCES.fullmatch(text)):
        return None
    return SplitText(found[1].strip(), found[2].strip())


def _split_tags(text: str, end: str | None) -> SplitText:
    tags = list(_find_tags(text, end))
    if not tags:
        return SplitText("", text)
    thought: int | None = None if tags[0].opens else _ANY  # the tag of the thought at this position
    position, thoughts, others = 0, [], [""]
    closings = {tag.kind: tag.start for tag in tags if not tag.opens}  # the last one of each kind
    for tag in tags:
        if thought is None:
            is_closed = max(closings.get(tag.kind, -1), closings.get(_ANY, -1)) > tag.start
            if tag.opens and not is_closed and not begins_a_line(text, tag.start):
                continue  # a mention of the tag
            others.append(text[position : tag.start])
            thought = tag.kind if tag.opens else None
        elif not tag.opens and (_ANY in (thought, tag.kind) or thought == tag.kind):
            thoughts.append(text[position : tag.start])
            thought = None
        else:
            continue
        position = tag.end
    if position == 0:
        return SplitText("", text)
    rest = text[position:]
    if thought is not None:
        return SplitText("\n".join(part.strip() for part in (*thoughts, rest)), "", finished=False)
    answer = rest if rest.strip() else next((part for part in reversed(others) if part.strip()), "")
    return SplitText("\n".join(part.strip() for part in thoughts), _unwrap(answer.lstrip()))


def _find_tags(text: str, end: str | None) -> Iterator[_Tag]:
    pattern = re.compile(f"(?P<end>{re.escape(end)})|{_TAG.pattern}") if end else _TAG
    for found in pattern.finditer(text):
        if text[found.start() - 1 : found.start()] == text[found.end() : found.end() + 1] == "`":
            continue
        group = found.lastgroup or ""
        kind = _ANY if group == "end" else int(group[-1])
        yield _Tag(kind, opens=group.startswith("open"), start=found.start(), end=found.end())


def begins_a_line(text: str, position: int) -> bool:
    """Return True if nothing but blanks comes before a position in its line."""
    return not text[text.rfind("\n", 0, position) + 1 : position].strip()


def _unwrap(answer: str) -> str:
    """The answer without the tags that some models put around it."""
    for wrapper in _WRAPPERS:
        if found := wrapper.fullmatch(answer):
            return found[1]
    return answer
