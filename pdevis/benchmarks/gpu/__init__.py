"""All measurements on a GPU in one run of a few minutes: parts, run, summary, plot."""
