"""Helpers without knowledge of models: validation, files, consoles, plots, argument types."""
