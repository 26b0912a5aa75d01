"""Drafters in other processes: worker pool, collectives and shared memory between workers, remote drafter."""
