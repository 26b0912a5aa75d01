"""Evaluation runs: specification, loop, journal, result files."""
