"""One benchmark over a grid of drafting settings: run, summary, plot."""
