"""Comparison of speculative and plain decoding on this installation, token for token: `python -m pdevis.verify`."""
