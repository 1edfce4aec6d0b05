"""A version that is tried beside the stable one: which requests it answers, and how it compares."""
