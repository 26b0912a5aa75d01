"""The error of everything that cannot be loaded, and helpers that reduce any library's error to one line."""

from __future__ import annotations

from collections.abc import Iterator


class ModelLoadError(ValueError):
    """A model, tokenizer or device that is not available; the message is one line that says what to do."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and the errors that led to it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a final full stop; without a message, its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
