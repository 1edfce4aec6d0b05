"""Numbers of things in words, for every line and page that counts."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a noun as it stands after a count: photo, photos, classes."""
    return noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 photo, 2 photos, 0 classes."""
    return f"{count} {plural(count, noun)}"
