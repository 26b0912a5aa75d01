"""The decode loop: sampling, verification, draft lengths. Token ids only, never text."""
