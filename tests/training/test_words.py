"""training/words.py: counts read well, in lines and in reports."""

from __future__ import annotations

import pytest

from training.words import counted


@pytest.mark.parametrize(
    ("count", "noun", "expected"), [(1, "photo", "1 photo"), (0, "photo", "0 photos"), (2, "class", "2 classes")]
)
def test_a_count_has_the_noun_that_fits(count: int, noun: str, expected: str) -> None:
    """One is singular, all others are plural."""
    assert counted(count, noun) == expected
