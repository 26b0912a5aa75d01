"""Benchmarks: what is asked and how answers are scored (`tasks`), how runs are done, stored and summarised."""
