"""Controls of a text beyond sampling: penalties, biases, forbidden tokens, stop strings."""
