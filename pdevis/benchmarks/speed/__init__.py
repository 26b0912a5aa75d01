"""Speed comparisons: decoders, baselines, runs, tables, plots."""
