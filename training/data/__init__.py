"""Photos: which there are, their classes and splits, and their pixels."""
