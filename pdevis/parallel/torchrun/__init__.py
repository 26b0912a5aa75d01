"""Targets and drafters on the processes that torchrun has started."""
