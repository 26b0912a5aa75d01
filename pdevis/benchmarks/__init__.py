"""Measuring decoders: quality on benchmarks, and speed against each other."""
