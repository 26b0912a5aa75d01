"""Drafters that run in worker processes: collectives, shared memory, worker pool, remote drafter."""
