"""Reasoning, the text that a thinking model writes before its answer, told apart from it for all programs."""
