"""Looks at photos before training: what there is, what is wrong, and what to do about it."""
