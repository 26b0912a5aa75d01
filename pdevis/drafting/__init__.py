"""How a drafter proposes tokens: the divergence check, schedules of layers, the engine that runs them, a round."""
