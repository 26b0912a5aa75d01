"""The drafting method: divergence check, layer schedules, the engine that runs them, and the drafter."""
