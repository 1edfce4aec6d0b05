"""A Keras model to a version in the model-store: may it be released, and does it answer as it should."""
