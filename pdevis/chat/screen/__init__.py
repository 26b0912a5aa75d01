"""Answers on the screen of a terminal, and in a pipe."""
