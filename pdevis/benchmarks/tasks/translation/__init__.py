"""Translations: the language of a reference, and metrics whose tokenizers are those of the language."""
