"""Models that decode one sequence: `CausalLM`, its two implementations, and the layers of a `DecoderStack`."""
