"""Looks at photos before anything is trained on them: what is there, what is wrong, and what to do about it."""
