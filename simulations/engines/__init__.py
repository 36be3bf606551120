"""Where local training runs: one file an engine."""
