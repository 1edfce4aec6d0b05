"""Fitting a network to photos: presets, phases, folds, and what an interrupted run needs to go on."""
