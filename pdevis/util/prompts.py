"""Timing and tuning: the built-in prompts, and the order in which decoders are measured on them."""

from __future__ import annotations

# Varied on purpose: prose, lists, code, arithmetic, translation, facts, dialogue, formats, a long context, a story.
PROMPTS = (
    "Why is the sky blue? Explain it to a ten-year-old in a few sentences.",
    "Write a Python function that returns the n-th Fibonacci number, and explain how it works.",
    "List seven things to check before a long bicycle tour.",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Show your steps.",
    "Translate into French: The library opens at nine, but the reading room stays closed until noon.",
    "Who was Marie Curie, and what is she known for?",
    "Write a short dialogue between a customer who wants to return a kettle and a patient shop assistant.",
    "Give an example of a JSON object that describes a book with title, author, year and two reviews.",
    "Summarise in two sentences: The town council met on Tuesday evening to discuss the future of the old mill. Some "
    "members want to turn it into a museum, others into flats; the mayor asked for a report on the costs of both plans "
    "by the end of the month, and an architect was invited to show her drawings to the public in the town hall.",
    "Write the beginning of a story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain the difference between a list and a tuple in Python, with a small example of each.",
    "What are the main causes of the seasons on Earth?",
)


def measurement_order(count: int, number: int) -> list[int]:
    """Return the order in which `count` alternatives are measured on prompt `number`, or in pass `number`.

    It is reversed every second time and rotated by one every two, so that a machine that warms up or slows down favours
    none of the alternatives.
    """
    shift = number // 2 % count
    order = [*range(shift, count), *range(shift)]
    return order if number % 2 == 0 else order[::-1]
