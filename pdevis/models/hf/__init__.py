"""Any causal language model of transformers as a `CausalLM`, in a way that is known to be exact for it."""
