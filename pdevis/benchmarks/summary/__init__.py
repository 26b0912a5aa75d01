"""From result files to summaries: metrics, tables, plots."""
