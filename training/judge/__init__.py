"""Measures a model, whether a run, a version or a gateway runs it; also its predictions, and where it looks."""
