"""Training: a folder of photos, or ready weights, to a new version in the model-store."""
