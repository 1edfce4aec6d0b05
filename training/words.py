"""Numbers of things, how lists of names differ, and any path, in words for every line and page that has them."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 5  # of each difference


def plural(count: int, noun: str) -> str:
    """Return a noun as it stands after a count: photo, photos, classes."""
    return noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 photo, 2 photos, 0 classes."""
    return f"{count} {plural(count, noun)}"


def difference(names: Sequence[str], others: Sequence[str]) -> str:
    """Return how names differ from others: 1 new (elk) and 2 missing (cat, dog)."""
    changes = [
        f"{len(found)} {what} ({', '.join(found[:_NAMED])}{', …' * (len(found) > _NAMED)})"
        for what, found in (("new", _without(names, others)), ("missing", _without(others, names)))
        if found
    ]
    return " and ".join(changes) or "the same names, in another order or number"


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def as_utf8(text: str) -> str:
    """Return a text as a file can have it: a path in it may be any bytes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
