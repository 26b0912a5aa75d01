"""The speed comparison of pdevis with other decoders: its settings, decoders, run, report, tables and plots."""
