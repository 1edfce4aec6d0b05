"""training/words.py: counts read well, in lines and in reports."""

from __future__ import annotations

import pytest

from training.words import counted, difference


@pytest.mark.parametrize(
    ("count", "noun", "expected"), [(1, "photo", "1 photo"), (0, "photo", "0 photos"), (2, "class", "2 classes")]
)
def test_a_count_has_the_noun_that_fits(count: int, noun: str, expected: str) -> None:
    """One is singular, all others are plural."""
    assert counted(count, noun) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("cat dog", "1 missing (elk)"),
        ("Cat dog elk", "1 new (Cat) and 1 missing (cat)"),
        ("a b c d e f", "6 new (a, b, c, d, e, …) and 3 missing (cat, dog, elk)"),
        ("elk dog cat", "the same names, in another order or number"),
    ],
)
def test_a_difference_names_what_differs(names: str, expected: str) -> None:
    """A few of each, and never what both have."""
    assert difference(names.split(), ["cat", "dog", "elk"]) == expected
