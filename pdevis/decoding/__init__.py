"""How drafts become text: verification by the target, and the decode loops. Token ids only, never text."""
