"""Searches for better hyperparameters, and writes them as a preset."""
