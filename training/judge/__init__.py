"""Judging a model, wherever it runs: figures, reports, predictions, and where it looked."""
