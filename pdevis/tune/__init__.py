"""Measuring a machine and a pair of models, and choosing how to decode with them: `python -m pdevis.tune`."""
