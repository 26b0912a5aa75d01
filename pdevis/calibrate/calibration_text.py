"""Calibration text: documents of token ids on which schedules are compared and corrections fitted.

The package has a small text of its own, questions and answers of many kinds (calibration_text.jsonl), which is put into
the model's chat template. A user's text is plain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pdevis.text import encode_prompt
from pdevis.util.files import parse_json, read_text

OWN_TEXT = Path(__file__).with_name("calibration_text.jsonl")
MAX_DOCUMENT_TOKENS = 512  # a longer text is divided
MIN_TOKENS = 512  # of all documents together
HELD_OUT = 4  # one document of this many is not used by fits


@dataclass(frozen=True)
class CalibrationText:
    """Documents of token ids, [T] each.

    Args:
        fitted: for fits.
        held_out: for measurements.
        name: of the text, for messages.
        digest: hash of all ids.
    """

    fitted: Sequence[Sequence[int]]
    held_out: Sequence[Sequence[int]]
    name: str
    digest: str

    @property
    def tokens(self) -> int:
        return sum(map(len, [*self.fitted, *self.held_out]))


def read_calibration_text(
    tokenizer: Any, vocab: int, context_length: int, file: str | PathLike[str] | None = None
) -> CalibrationText:
    """Read and encode the calibration text.

    Args:
        tokenizer: of the drafter.
        vocab: ids of the drafter are below this; larger ones are replaced by the last, as in drafting.
        context_length: of the drafter, which limits the length of a document.
        file: plain text; None: the package's own.

    Raises:
        ValueError: the file cannot be read, is not text, or has too few tokens.
    """
    if file is None:
        name, texts = "the package's own text", _encode_own(tokenizer)
    else:
        name = str(file)
        try:
            texts = [tokenizer.encode(read_text(Path(file)), add_special_tokens=False)]
        except OSError as error:
            raise ValueError(f"calibration_text = {name!r}: cannot be read: {error.strerror or error}") from None
    size = min(MAX_DOCUMENT_TOKENS, context_length)
    documents = [
        [min(token, vocab - 1) for token in text[first : first + size]]
        for text in texts
        for first in range(0, len(text), size)
    ]
    tokens = sum(map(len, documents))
    if tokens < MIN_TOKENS:
        raise ValueError(f"calibration_text = {name!r}: has {tokens} tokens, must have at least {MIN_TOKENS}")
    if len(documents) < HELD_OUT:  # a short text of long documents
        documents = [part for document in documents for part in _quarters(document)]
    digest = hashlib.sha256(repr(documents).encode()).hexdigest()[:16]
    held_out = documents[HELD_OUT - 1 :: HELD_OUT]
    fitted = [document for i, document in enumerate(documents) if i % HELD_OUT != HELD_OUT - 1]
    return CalibrationText(fitted, held_out, name, digest)


def _encode_own(tokenizer: Any) -> list[list[int]]:
    """Encode each question and answer, in the chat template if the tokenizer has one."""
    texts = []
    for line in read_text(OWN_TEXT).splitlines():
        item = parse_json(line)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        question = encode_prompt(tokenizer, item["user"], has_template, "the drafter")
        answer = item["assistant"] if has_template else f"\n{item['assistant']}"
        texts.append(question + tokenizer.encode(answer, add_special_tokens=False))
    return texts


def _quarters(document: list[int]) -> list[list[int]]:
    size = -(-len(document) // HELD_OUT)
    return [document[first : first + size] for first in range(0, len(document), size)]
