"""Names to models: the catalog, the embedded model, loading, and the two kinds of decoder that run them."""
