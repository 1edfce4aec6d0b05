"""Fitting a network to photos: presets, phases, and what an interrupted run needs to go on."""
