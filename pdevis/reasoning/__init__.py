"""Reasoning, the text that a thinking model writes before its answer, and its division from the answer."""
