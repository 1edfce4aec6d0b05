"""Asks a running gateway about many images: the command `python -m gateway.batch`."""
