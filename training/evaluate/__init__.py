"""Judges a model on photos with labels: figures, plots, and a report."""
